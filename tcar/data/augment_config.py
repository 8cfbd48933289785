"""How clips are varied; apart from what varies them, as torchvision takes seconds to import."""

from dataclasses import dataclass, fields


@dataclass(frozen=True)
class AugmentConfig:
    """How clips are varied; raises ValueError naming the field that does not fit.

    First come `operations` of RandAugment (Cubuk et al. 2020) on whole frames, as CAST and the probes of V-JEPA 2 have
    it: each is drawn of timm's 15 that grow with the magnitude and left out half of the time; its magnitude, 0 to 10,
    is normal about `magnitude` with a deviation of `spread`. None where `operations` is 0. Then a crop takes a share of
    the frame between the two of `scale`, of an aspect (width over height) between those of `ratio`, and becomes a
    square of `size` pixels (Inception's random resized crop, Szegedy et al. 2015; with antialiasing, which those two
    leave out). `jitter` are the ranges of brightness, contrast, saturation and hue. `flip` and `erase` are
    probabilities, the second of one box in all frames (Zhong et al. 2020), filled with noise as the probes of V-JEPA 2
    fill it: each value of each frame is drawn from the normal distribution of ImageNet's colours (here cut off at 0
    and 255, as frames are bytes).
    """

    size: int = 224
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.0
    jitter: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    operations: int = 0
    magnitude: int = 7
    spread: float = 0.5
    erase: float = 0.0

    def __post_init__(self):
        for name, (low, high) in (("flip", (0, 1)), ("erase", (0, 1)), ("magnitude", (0, 10)), ("spread", (0, 10))):
            if not low <= (value := getattr(self, name)) <= high:
                raise ValueError(f"AugmentConfig.{name} must lie in [{low}, {high}], got {value}")
        if not 0 < self.scale[0] <= self.scale[1] <= 1 or not 0 < self.ratio[0] <= self.ratio[1]:
            raise ValueError(
                f"AugmentConfig.scale {self.scale} must ascend within (0, 1], ratio {self.ratio} ascend above 0"
            )
        if self.size < 1 or self.operations < 0 or min(self.jitter) < 0 or self.jitter[3] > 0.5:
            some = {field.name: getattr(self, field.name) for field in fields(self)}
            raise ValueError(
                f"AugmentConfig: size at least 1, operations and jitter at least 0, hue at most 0.5: {some}"
            )
