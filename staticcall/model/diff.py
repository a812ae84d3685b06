"""What two reports have in common and what not, by names and not by addresses, which move from build to build."""

from collections.abc import Mapping
from typing import NamedTuple


class SiteName(NamedTuple):
    """A site across builds: the function it lies in (or the section), its key, and the how-manieth of both it is."""

    function: str
    key: str
    ordinal: int


class SiteFacts(NamedTuple):
    """What is compared of a site: the form of its instruction, and the verdict on it with its reason."""

    form: str
    verdict: str
    reason: str


class ImageFacts(NamedTuple):
    """What is compared of an image. `keys` has the present target of each, by the key's name."""

    path: str
    keys: Mapping[str, str]
    sites: Mapping[SiteName, SiteFacts]


class Default(NamedTuple):
    """A key whose present target changed, by names."""

    key: str
    old: str
    new: str


class SiteChange(NamedTuple):
    """A site with what it was and is; None where it is not there."""

    site: SiteName
    old: SiteFacts | None
    new: SiteFacts | None


class ImageDiff(NamedTuple):
    """What changed in an image that both sides have; `name` is what it is called whatever the release."""

    name: str
    old_path: str
    new_path: str
    keys_added: tuple[str, ...]
    keys_lost: tuple[str, ...]
    defaults: tuple[Default, ...]
    sites_added: tuple[SiteChange, ...]
    sites_lost: tuple[SiteChange, ...]
    forms: tuple[SiteChange, ...]
    verdicts: tuple[SiteChange, ...]

    @property
    def changes(self) -> int:
        """How many things changed."""
        return sum(len(part) for part in self[3:])


class Side(NamedTuple):
    """One side: what the user named, and the counts of all that is in it."""

    path: str
    images: int
    keys: int
    sites: int


class Diff(NamedTuple):
    """Everything that differs: images of one side only, by their facts, and changes in those of both, in order."""

    old: Side
    new: Side
    added: tuple[ImageFacts, ...]
    lost: tuple[ImageFacts, ...]
    images: tuple[ImageDiff, ...]

    @property
    def equal(self) -> bool:
        """Whether there is no difference."""
        return not (self.added or self.lost or self.images)
