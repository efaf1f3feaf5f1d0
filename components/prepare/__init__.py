"""The prepare room: images from anywhere become a ShardSet."""
