"""Options that another option's value leaves unread: set all the same, the result would not be what was meant, so they are refused."""

from collections.abc import Mapping, Sequence

from sr3_core.config.section import Section


def refuse_unread(
    section: Section, chooser: str, reads: Mapping[str, Sequence[str]], *, defaults: Mapping[str, object] | None = None
) -> None:
    """ValueError for an option that some value of ``chooser`` reads (``reads``, by value) but the chosen one does not, and that is set.

    Set is what differs from its default; ``defaults`` names those that are not the section's own.
    """
    chosen = str(getattr(section, chooser))
    for name in sorted({name for names in reads.values() for name in names} - set(reads[chosen])):
        default = (defaults or {}).get(name, type(section).model_fields[name].get_default())
        if getattr(section, name) != default:
            others = " or ".join(value for value, names in reads.items() if name in names)
            raise ValueError(f"{name} is set, but {chooser} {chosen} does not read it: take it out, or set {chooser} to {others}")
