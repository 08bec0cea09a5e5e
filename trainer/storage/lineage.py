"""Which of the checkpoints in a store belong to a run as it is now. Pure functions of a listing.

Every writer of checkpoints is an owner: the lease's number, and the number of its claim under that lease. An owner writes below
names of its own, so that no other can overwrite what it wrote:

    <lease, 6 digits>-<claim, 3 digits>-000000/claim.json   this owner writes from now on; every earlier one is fenced off
                                               keeps.json   the checkpoints of earlier owners that it builds on
    <lease>-<claim>-<save, 6 digits>/<step, 9 digits>/      one save
    <step>/                                                 a save of a version before owners existed

An owner claims first and lists what it builds on afterwards. What an earlier owner commits later is in no keeps.json and does not
count, and that owner sees the claim before it acknowledges a save. This needs no clock, and no condition that spans
two objects. A save also supersedes earlier ones of the same or a later step: the run has gone back to before them.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

COMMIT, CLAIM, KEEPS = "commit.json", "claim.json", "keeps.json"
Owner = tuple[int, int]
"""Number of the lease, and of the claim under it."""


class Save(NamedTuple):
    """One save. They compare in the order in which they count: later owners after earlier ones."""

    lease: int
    claim: int
    number: int
    step: int

    @property
    def owner(self) -> Owner:
        return self.lease, self.claim

    @property
    def folder(self) -> str:
        """Below the folder of the checkpoints, with a `/` at the end."""
        return f"{owner_folder(self.owner, self.number)}{self.step:09d}/" if any(self[:3]) else f"{self.step:09d}/"


@dataclass
class Stored:
    """What a listing shows."""

    saves: dict[Save, set[str]] = field(default_factory=dict)
    """Save -> names of its objects, committed or not."""
    claims: dict[Owner, set[str]] = field(default_factory=dict)
    """Owner -> CLAIM, and KEEPS once that is written."""

    @property
    def committed(self) -> list[Save]:
        """In the order in which they count."""
        return sorted(save for save, names in self.saves.items() if COMMIT in names)

    def latest_claim(self) -> Owner:
        return max(self.claims, default=(0, 0))


def owner_folder(owner: Owner, number: int = 0) -> str:
    return f"{owner[0]:06d}-{owner[1]:03d}-{number:06d}/"


def read_listing(keys: Iterable[str], prefix: str) -> Stored:
    """The checkpoints among `keys`, all of which start with `prefix`. Other objects are left out."""
    stored = Stored()
    for key in keys:
        match = re.fullmatch(r"(?:(\d{6,})-(\d{3,})-(\d{6,})/)?(?:(\d{9,})/)?([^/]+)", key.removeprefix(prefix))
        if not match:
            continue
        lease, claim, number = (int(part or 0) for part in match.groups()[:3])
        if match[4]:
            stored.saves.setdefault(Save(lease, claim, number, int(match[4])), set()).add(match[5])
        elif match[1] and not number:
            stored.claims.setdefault((lease, claim), set()).add(match[5])
    return stored


def current(stored: Stored, keeps: Callable[[Owner], Iterable[str] | None]) -> list[Save]:
    """The committed saves of the run as it is now, by increasing step. `keeps`: the folders in an owner's KEEPS; None if that
    cannot be read."""
    belonging = _belonging(stored.committed, sorted(owner for owner, names in stored.claims.items() if KEEPS in names), keeps)
    found: list[Save] = []
    for save in sorted(belonging):
        while found and found[-1].step >= save.step:
            found.pop()
        found.append(save)
    return found


def _belonging(committed: list[Save], owners: list[Owner], keeps: Callable[[Owner], Iterable[str] | None]) -> set[Save]:
    if not owners:
        return set(committed)
    head = owners[-1]
    own = {save for save in committed if save.owner == head}
    kept = keeps(head)
    if kept is None:  # as if it had built on everything that its predecessor had
        return own | _belonging([save for save in committed if save.owner < head], owners[:-1], keeps)
    names = set(kept)
    return own | {save for save in committed if save.folder in names}


def superseded(stored: Stored, mine: Owner, now: list[Save], kept: set[Save], newest: Save) -> dict[Save, set[str]]:
    """What may be deleted: never a save of a later owner, never one of a later step. `now`: as `current`; `kept`: those of them to
    keep; `newest`: the save just made by `mine`. Saves without COMMIT are included: whoever deletes them must look again."""
    return (
        {
            save: names
            for save, names in stored.saves.items()
            if save not in kept and save < newest and save.owner <= mine and (save.step <= newest.step or COMMIT not in names)
        }
        if newest in now
        else {}
    )


def losses_known(saves: Iterable[Save], losses: Mapping[Save, float | None]) -> list[Save]:
    """The saves with a known finite loss, lowest loss first, the earlier of equal ones first."""
    known = [(loss, save.step, save) for save in saves if (loss := losses.get(save)) is not None]
    return [save for *_, save in sorted(known)]
