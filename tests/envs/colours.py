def shows(colour: str, pixel) -> bool:
    """Whether a pixel (3,) is of a colour as instructions name it."""
    red, green, blue = pixel
    return {
        "red": red > 1.5 * max(green, blue),
        "green": green > 1.5 * max(red, blue),
        "blue": blue > 1.5 * max(red, green),
        "yellow": min(red, green) > 1.5 * blue and green > 0.7 * red,
        "purple": min(red, blue) > 1.5 * green,
        "orange": red > 1.3 * green > 1.3 * blue,
    }[colour]
