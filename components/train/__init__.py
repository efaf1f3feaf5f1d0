"""The train room: one stage of the cascade, from a ShardSet to a ModelBundle, over Ray Train."""
