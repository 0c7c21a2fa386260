"""The schema of this package itself: what Cog's rules ask of it, and what Cog reads from the living class."""

from cog import _adt

from local.annotations import SCALARS

JSON_TYPES = {
    _adt.PrimitiveType.STRING: SCALARS["str"],
    _adt.PrimitiveType.INTEGER: SCALARS["int"],
    _adt.PrimitiveType.FLOAT: SCALARS["float"],
    _adt.PrimitiveType.BOOL: SCALARS["bool"],
    _adt.PrimitiveType.PATH: SCALARS["Path"],
}
