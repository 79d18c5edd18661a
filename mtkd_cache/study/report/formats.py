"""How the report writes names and numbers. Pure functions; an absent value is the empty string."""

from collections.abc import Sequence

TIMES, MINUS, DASH = "\u00d7", "\u2212", "\u2013"

WHOLE = {"mininetv2": "MiniNetV2", "pidnet-s": "PIDNet-S"}  # networks that are their own encoders
DECODERS = {
    "deeplabv3": "DeepLabV3",
    "deeplabv3plus": "DeepLabV3+",
    "dpt": "DPT",
    "fpn": "FPN",
    "linknet": "LinkNet",
    "lraspp": "LR-ASPP",
    "manet": "MA-Net",
    "pan": "PAN",
    "pspnet": "PSPNet",
    "segformer": "SegFormer",
    "unet": "U-Net",
    "unetplusplus": "U-Net++",
    "upernet": "UPerNet",
}
ENCODERS = (
    ("resnet", "ResNet"),
    ("efficientnet-b", "EfficientNet-B"),
    ("mit_b", "MiT-B"),
    ("mobilenet_v3_large", "MobileNetV3-Large"),
)


def display_name(arch: str) -> tuple[str, str]:
    """(architecture, encoder) as one reads them: deeplabv3-resnet18 -> DeepLabV3, ResNet18; others as they are."""
    if arch in WHOLE:
        return WHOLE[arch], WHOLE[arch]
    decoder, _, encoder = arch.partition("-")
    name = DECODERS.get(decoder, decoder)
    for prefix, shown in ENCODERS:
        if encoder.startswith(prefix):
            return name, shown + encoder[len(prefix) :]
    return name, encoder or name


def full_name(arch: str) -> str:
    """Architecture and encoder in one: DeepLabV3 ResNet18; MiniNetV2, which is its own encoder, in one word."""
    name, encoder = display_name(arch)
    return name if name == encoder else f"{name} {encoder}"


def spoken(anatomy: str) -> str:
    """An anatomy's name with spaces."""
    return anatomy.replace("_", " ")


def percent(value: float | None, sd: float | None = None) -> str:
    """A fraction in percent with one decimal, and its spread where there is one: 60.5 ± 0.8."""
    if value is None:
        return ""
    return f"{100 * value:.1f}" if sd is None else f"{100 * value:.1f} ± {100 * sd:.1f}"


def span(bounds: Sequence[float] | None, digits: int) -> str:
    """An interval of fractions in percent: 57.1–63.4."""
    return "" if bounds is None else DASH.join(f"{100 * bound:.{digits}f}" for bound in bounds)


def signed(points: float | None, sd: float | None = None) -> str:
    """A difference of percentages with its sign, a real minus, and no sign where it rounds to zero: −1.2 ± 0.3."""
    if points is None:
        return ""
    size = f"{abs(points):.1f}"
    text = size if float(size) == 0 else f"{'+' if points > 0 else MINUS}{size}"
    return text if sd is None else f"{text} ± {sd:.1f}"


def fixed(value: float | None, digits: int) -> str:
    """A number with that many decimals."""
    return "" if value is None else f"{value:.{digits}f}"
