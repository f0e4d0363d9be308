"""What tests of pages in a browser share: sizes of screens, and how colors contrast."""

import re

DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}


def luminance(color):
    """Relative luminance (WCAG 2) of a color such as rgb(20, 22, 26)."""
    channels = [int(value) / 255 for value in re.findall(r"\d+", color)[:3]]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one, other):
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)
