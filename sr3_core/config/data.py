"""The prepare room's section: where photos come from, how they are divided, brought to levels and stored. No torch here."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field, field_validator, model_validator

from sr3_core.config.section import Section, SplitName


class Split(Section):
    """How photos are divided: as published, or by content hash into the shares given; auto: as published where every photo is."""

    by: Literal["auto", "published", "content_hash"] = "auto"
    val: float = Field(default=0.1, ge=0, lt=1)
    test: float = Field(default=0.1, ge=0, lt=1)
    minimum: dict[SplitName, int] = Field(default={"train": 1, "val": 1, "test": 1})

    @model_validator(mode="after")
    def _shares_of_one_whole(self) -> "Split":
        if self.val + self.test > 1:
            raise ValueError(f"split.val {self.val:g} and split.test {self.test:g} are more than all photos together")
        if any(count < 0 for count in self.minimum.values()):
            raise ValueError(f"split.minimum {self.minimum} must not be negative")
        return self


class Codec(Section):
    """How a level is stored. A low image is always lossless; JPEG is for the largest level alone, the others are then PNG.

    ``png`` and ``webp`` (a fifth smaller, in less than half the time) are lossless; JPEG XL is not offered, since Pillow, with which every
    reader of the shards decodes, does not know it. What PNG cannot hold (2 channels, more than 4, 16 bits of more than 1) is stored in
    numpy's format. ``min_psnr``: the quality of a JPEG is raised until it decodes to so many dB at least; PNG where 100 does not.
    """

    LATER: ClassVar[tuple[str, ...]] = ("min_psnr",)

    format: Literal["png", "webp", "jpeg"] = "png"
    quality: int = Field(default=95, ge=1, le=100)
    min_psnr: float | None = Field(default=None, gt=0, le=100)

    @model_validator(mode="after")
    def _floor_is_for_jpeg(self) -> "Codec":
        if self.min_psnr is not None and self.format != "jpeg":
            raise ValueError(f"min_psnr is for format 'jpeg', but format is {self.format!r}, which is lossless")
        return self


def _ascending(value: tuple[float, float]) -> tuple[float, float]:
    if value[0] > value[1]:
        raise ValueError(f"range {list(value)} must go from its smaller to its larger end")
    return value


Range = Annotated[tuple[float, float], AfterValidator(_ascending)]  # drawn from uniformly, both ends included


class Tiles(Section):
    """Tiles of ``fit: tiles``. ``stride`` from one to the next in pixels of the largest level (None: that level, so that none overlap).

    ``min_detail`` refuses flat ones: the root mean square of the differences between neighbouring pixels, in 1/255 of the full range
    (sky is about 1, foliage 20); 0 takes every tile.
    """

    stride: int | None = Field(default=None, ge=1)
    min_detail: float = Field(default=0.0, ge=0, le=255)


class Blur(Section):
    """A Gaussian of standard deviation ``sigma``, in pixels of the image before it is brought down."""

    sigma: Range = (0.0, 2.0)

    @field_validator("sigma")
    @classmethod
    def _within(cls, value: tuple[float, float]) -> tuple[float, float]:
        return _between(value, "sigma", 0.0, 32.0)


class Noise(Section):
    """Noise on the low image; ``level`` is its standard deviation in 1/255 of the full range: everywhere for gaussian, at white for
    poisson, whose variance is in proportion to the light."""

    kind: Literal["gaussian", "poisson"] = "gaussian"
    level: Range = (0.0, 10.0)

    @field_validator("level")
    @classmethod
    def _within(cls, value: tuple[float, float]) -> tuple[float, float]:
        return _between(value, "level", 0.0, 128.0)


class Jpeg(Section):
    """The low image as JPEG and back; ``quality`` in whole numbers of 1..100."""

    quality: Range = (40.0, 95.0)

    @field_validator("quality")
    @classmethod
    def _within(cls, value: tuple[float, float]) -> tuple[float, float]:
        if any(end != int(end) for end in value):
            raise ValueError(f"quality {list(value)} must be whole numbers")
        return _between(value, "quality", 1.0, 100.0)


class Corruption(Section):
    """What happens to the lowest level's image beside the resize by ``data.degradation``: blur, resize, noise, JPEG, in this order.

    In training it is drawn anew for each global sample index; the val and test images are stored with one draw by their key.
    """

    blur: Blur | None = None
    noise: Noise | None = None
    jpeg: Jpeg | None = None

    @model_validator(mode="after")
    def _does_something(self) -> "Corruption":
        if self.blur is None and self.noise is None and self.jpeg is None:
            raise ValueError("corruption without blur, noise or jpeg changes nothing: name one, or leave it out")
        return self


def _between(value: tuple[float, float], name: str, least: float, most: float) -> tuple[float, float]:
    if not least <= value[0] <= value[1] <= most:
        raise ValueError(f"{name} {list(value)} must lie in {least:g} .. {most:g}")
    return value


class Data(Section):
    """The prepare room's section. ``levels`` are sides in pixels, ascending; each is made from the next larger one.

    ``fit``: the centre square (crop), all of the photo as a square (resize), every tile of it (tiles), or the photo at its own size
    and shape (keep), where levels say the ratios between the sizes and the least short side.
    ``bits`` of a channel: 8, or 16, of which every input must have as many. ``channels``: 1 is grey, 3 is RGB, 4 is RGB with an alpha that
    is data; any other number is of arrays in numpy's format.
    ``decoding``: fast reads a JPEG at a half, a quarter or an eighth of its size where the largest level still is the mean of whole blocks
    of that (1024 pixels to 256, not 1000), as its decoder does it in less time: about 54 dB from exact, 52 where the file's colour is
    subsampled.
    ``near_duplicates``: photos whose 64-bit perceptual hashes differ in at most so many bits never cross splits; None: not looked for.
    """

    LATER: ClassVar[tuple[str, ...]] = ("tiles", "corruption", "near_duplicates", "bits", "decoding")

    source: str
    options: dict[str, Any] = Field(default={})
    split: Split = Split()
    levels: tuple[int, ...] = Field(min_length=1)
    required_levels: dict[SplitName, tuple[int, ...]] = Field(default={})
    fit: Literal["crop", "resize", "tiles", "keep"] = "crop"
    tiles: Tiles = Tiles()
    decoding: Literal["exact", "fast"] = "exact"
    degradation: Literal["bicubic", "box", "lanczos"] = "bicubic"
    corruption: Corruption | None = None
    near_duplicates: int | None = Field(default=None, ge=0, le=16)
    codec: Codec = Codec()
    channels: int = Field(default=3, ge=1, le=64)
    bits: Literal[8, 16] = 8
    shard_samples: int = Field(default=8, ge=1)
    max_rejected_share: float = Field(default=0.2, ge=0, le=1)

    @model_validator(mode="after")
    def _levels_fit(self) -> "Data":
        if any(level < 1 for level in self.levels) or list(self.levels) != sorted(set(self.levels)):
            raise ValueError(f"levels {list(self.levels)} must be positive, ascending and different")
        for split, required in self.required_levels.items():
            if not required or not set(required) <= set(self.levels):
                raise ValueError(f"required_levels.{split} {list(required)} must name some of levels {list(self.levels)}")
        return self

    @model_validator(mode="after")
    def _options_are_read(self) -> "Data":
        if self.tiles != Tiles() and self.fit != "tiles":
            raise ValueError(f"tiles are for fit 'tiles', but fit is {self.fit!r}")
        if self.decoding == "fast" and self.fit not in ("crop", "resize"):
            raise ValueError(f"decoding 'fast' is for fit 'crop' and 'resize', but fit {self.fit!r} wants every pixel")
        if self.corruption is not None and len(self.levels) == 1:
            raise ValueError("corruption makes a low image of the next larger level, but there is one level")
        if self.corruption is not None and self.corruption.jpeg is not None and self.channels not in (1, 3):
            raise ValueError(f"corruption.jpeg takes 1 or 3 channels, but channels is {self.channels}")
        if self.corruption is not None and self.corruption.jpeg is not None and self.bits != 8:
            raise ValueError(f"corruption.jpeg takes 8 bits, but bits is {self.bits}")
        return self

    @model_validator(mode="after")
    def _codec_holds_them(self) -> "Data":
        held = {"jpeg": (1, 3), "webp": (1, 3, 4)}.get(self.codec.format)
        if held is not None and (self.bits != 8 or self.channels not in held):
            what = f"{self.channels} channels of {self.bits} bits"
            allowed = f"8 bits of {' or '.join(map(str, held))} channels"
            raise ValueError(f"codec.format {self.codec.format!r} takes {allowed}, not {what}: take png")
        return self

    def required(self, split: str) -> tuple[int, ...]:
        """Levels that every sample of ``split`` must have; all of them unless the recipe says otherwise."""
        return self.required_levels.get(split, self.levels)  # type: ignore[arg-type]
