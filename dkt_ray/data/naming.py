"""Who the users of a dataset are: as their logs name them or by pseudonym, and without those who were deleted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, NamedTuple

import polars as pl

from dkt_ray.data.parse import as_text
from dkt_ray.data.reader import Block
from dkt_ray.errors import ConfigError
from dkt_ray.privacy import PRIVACY_KEY, Privacy

NOT_KEPT: Final = ""  # in place of a line that cannot be read: it may hold the name of a user


class Named(NamedTuple):
    """A block whose users have the names under which they are stored."""

    block: Block
    forgotten: int  # rows left out, of users who were deleted


@dataclass(frozen=True)
class Naming:
    """How users are named while logs are read."""

    privacy: Privacy
    pseudonyms: bool = False
    """Make pseudonyms of raw ids; what is one already stays."""
    forgotten: frozenset[str] = frozenset()
    """Marks of users who were deleted, see `Privacy.mark`."""
    tenant: str = ""
    """Whose users raw ids are."""

    @classmethod
    def of_environment(cls, pseudonyms: bool, tenant: str = "") -> Naming:
        """With the key that the environment holds.

        Raises:
            ConfigError: pseudonyms or a tenant without a key.
        """
        privacy = Privacy.of_environment()
        if pseudonyms and privacy.key is None:
            raise ConfigError(
                f"data.pseudonyms=true, but {PRIVACY_KEY} is not set: set it to the key that the service has, "
                "or --set data.pseudonyms=false for data that are pseudonymous already"
            )
        if tenant and privacy.key is None:
            raise ConfigError(f"data.tenant={tenant!r}, but {PRIVACY_KEY} is not set: set it to the key of the service")
        return cls(privacy, pseudonyms, tenant=tenant)

    @property
    def identity(self) -> str | None:
        """What the names depend on beside the logs."""
        words = "the key of this dataset's pseudonyms" + (f", tenant {self.tenant}" if self.tenant else "")
        return self.privacy.mark(words) if self.pseudonyms else None

    def block(self, block: Block) -> Named:
        """A block with the names of its users, none of them deleted; once a user, not once a row."""
        if not self.pseudonyms and not self.forgotten:
            return Named(block, 0)
        where = block.file if isinstance(block.file, str) else "several files"
        users = as_text(block.raw["user"], where)
        distinct = users.unique()
        names = self.series(distinct)
        if self.pseudonyms:
            named = users.replace_strict(distinct, names, return_dtype=pl.String)
            block = block._replace(raw=block.raw.with_columns(named.alias("user")))
        lines = pl.lit(NOT_KEPT, pl.String).alias("raw")
        block = block._replace(malformed=block.malformed.with_columns(lines))
        gone = users.is_in(distinct.filter(self.gone(names)).implode())
        return Named(_filtered(block, ~gone) if gone.any() else block, int(gone.sum()))

    def series(self, users: pl.Series) -> pl.Series:
        """The stored names of users; of a missing one, none."""
        return pl.Series(
            "user", [self.privacy.in_data(user, self.tenant) if user else user for user in users], pl.String
        )

    def gone(self, names: pl.Series) -> pl.Series:
        """Which stored names are of users who were deleted."""
        known = self.forgotten
        return pl.Series(
            [bool(known) and self.privacy.mark(name) in known for name in names.to_list()], dtype=pl.Boolean
        )


def _filtered(block: Block, kept: pl.Series) -> Block:
    file = block.file if isinstance(block.file, str) else block.file.filter(kept)
    return block._replace(raw=block.raw.filter(kept), rows=block.rows[kept.to_numpy()], file=file)
