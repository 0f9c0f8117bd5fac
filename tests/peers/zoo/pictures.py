"""Pictures of text, drawn with Pillow's own font: what the OCR models are for."""

import numpy as np
from PIL import Image, ImageDraw, ImageFont

WORDS = """signed model edge device fleet canary golden window probe sensor bridge harbour valve
pressure turbine 0231 1984 4.27 -18 °C kW/h No.7 gate meter north lamp copper winter anchor""".split()


def phrase(random, count):
    return " ".join(random.choice(WORDS) for _ in range(count))


def as_tensor(image, mean=0.5, std=0.5):
    """Height × width × RGB bytes to channels × height × width, normalised."""
    pixels = np.asarray(image, dtype=np.float32) / np.float32(255)
    return np.ascontiguousarray(((pixels - np.float32(mean)) / np.float32(std)).transpose(2, 0, 1))


def line_image(random, height, width):
    """One line of dark text on a light ground."""
    ground = tuple(int(v) for v in random.integers(180, 256, 3))
    ink = tuple(int(v) for v in random.integers(0, 90, 3))
    image = Image.new("RGB", (width, height), ground)
    font = ImageFont.load_default(size=int(height * random.uniform(0.45, 0.7)))
    draw = ImageDraw.Draw(image)
    top = int(height * random.uniform(0.1, 0.25))
    draw.text((int(random.integers(2, 10)), top), phrase(random, 4), ink, font)
    return image


def lines(height, width, count, seed):
    """Lines as tensors, every other one turned by 180°."""
    random = np.random.Generator(np.random.PCG64(seed))
    images = [line_image(random, height, width) for _ in range(count)]
    return [as_tensor(im.rotate(180) if at % 2 else im) for at, im in enumerate(images)]


def page(random, height, width):
    """Several lines of text, here and there, one of them slanted."""
    image = Image.new("RGB", (width, height), (235, 233, 228))
    draw = ImageDraw.Draw(image)
    for top in range(10, height - 40, 48):
        font = ImageFont.load_default(size=int(random.integers(14, 30)))
        ink = tuple(int(v) for v in random.integers(0, 110, 3))
        draw.text((int(random.integers(5, width // 3)), top), phrase(random, 3), ink, font)
    return image.rotate(float(random.uniform(-4, 4)), fillcolor=(235, 233, 228))
