"""Random cases of every processing step, with what its reference gives: Pillow for images, NumPy,
scikit-learn, and torchvision's and Ultralytics' rules written out in NumPy. Tolerances are those that
docs/processing-steps.md states.
"""

import io
import math

import numpy as np
from PIL import Image
from sklearn.impute import SimpleImputer
from sklearn.preprocessing import MinMaxScaler, OneHotEncoder, StandardScaler

from case import after, before, call, case

FILTERS = {"nearest": Image.Resampling.NEAREST, "box": Image.Resampling.BOX,
           "bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC,
           "lanczos": Image.Resampling.LANCZOS}
JPEG_LEVELS, JPEG_MEAN = 4, 0.35


def picture(rng, height, width, channels=3):
    """Something like a photograph: smooth, with an edge and a little noise."""
    y, x = np.mgrid[0:height, 0:width]
    f = rng.uniform(0.01, 0.2, (channels, 2))
    waves = np.stack([127 + 90 * np.sin(a * x + b * y) for a, b in f], -1)
    waves[:, width // 2:] += rng.uniform(-60, 60, channels)
    return (waves + rng.normal(0, 4, waves.shape)).clip(0, 255).astype(np.uint8)


def noise(rng, height, width, channels=3):
    return rng.integers(0, 256, (height, width, channels), dtype=np.uint8)


def side(rng, least=1, most=90):
    return int(rng.integers(least, most))


def file_of(image, **options):
    out = io.BytesIO()
    image.save(out, **options)
    return out.getvalue()


def pillow(array):
    return Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array)


def array_of(image):
    array = np.asarray(image)
    return array[..., None] if array.ndim == 2 else array


def decoding(channels, **more):
    return {"decode_image": {"tensor": "image", "channels": channels, "max_pixels": 1_000_000, **more}}


def decode(name, raw, channels, **more):
    """A file and what Pillow reads from it. The graph takes one size only: the second step does nothing if
    the first one gave it."""
    expected = array_of(Image.open(io.BytesIO(raw)).convert("RGB" if channels == "rgb" else "L"))
    fixed = {"resize": {"tensor": "image", "height": expected.shape[0], "width": expected.shape[1],
                        "filter": "nearest"}}
    return before(name, [decoding(channels), fixed], {"image": [raw]}, {"image": expected}, **more)


def jpeg(rng):
    channels = str(rng.choice(["rgb", "grey"]))
    image = pillow(picture(rng, side(rng, 16), side(rng, 16), int(rng.choice([1, 3]))))
    options = {"quality": int(rng.integers(40, 96)), "progressive": bool(rng.integers(2))}
    if image.mode == "RGB":
        options["subsampling"] = int(rng.integers(3))
    raw = file_of(image, format="JPEG", **options)
    return decode(f"jpeg {image.mode} {image.size} {options} to {channels}", raw, channels,
                  tolerance=JPEG_LEVELS, mean=JPEG_MEAN)


def png(rng):
    channels = str(rng.choice(["rgb", "grey"]))
    mode = str(rng.choice(["RGB", "RGBA", "L", "LA", "P", "1"]))
    image = pillow(noise(rng, side(rng), side(rng), {"RGBA": 4, "L": 1, "LA": 2, "1": 1}.get(mode, 3)))
    if mode in ("P", "1"):
        image = image.convert(mode)
    raw = file_of(image, format="PNG")
    return decode(f"png {mode} {image.size} to {channels}", raw, channels)


def resize(rng):
    name = str(rng.choice(list(FILTERS)))
    channels = int(rng.choice([1, 3]))
    make = picture if rng.integers(2) else noise
    image = make(rng, side(rng), side(rng), channels)
    height, width = side(rng), side(rng)
    expected = array_of(pillow(image).resize((width, height), FILTERS[name]))
    step = {"resize": {"tensor": "image", "height": height, "width": width, "filter": name}}
    return before(f"resize {name} {image.shape} to {height} by {width}", [step],
                  {"image": image}, {"image": expected})


def cover_and_crop(rng):
    """torchvision's Resize(size) and CenterCrop(crop)."""
    image = noise(rng, side(rng, 2), side(rng, 2))
    height, width = image.shape[:2]
    size = side(rng, 8, 40)
    crop = int(rng.integers(1, size + 1))
    short, long = min(height, width), max(height, width)
    longer = int(size * long / short)
    new = (size, longer) if width <= height else (longer, size)
    resized = array_of(pillow(image).resize(new, Image.Resampling.BILINEAR))
    top = int(round((resized.shape[0] - crop) / 2.0))
    left = int(round((resized.shape[1] - crop) / 2.0))
    steps = [decoding("rgb"),
             {"resize": {"tensor": "image", "height": size, "width": size, "fit": "cover"}},
             {"center_crop": {"tensor": "image", "height": crop, "width": crop}}]
    return before(f"cover {size} and crop {crop} of {image.shape}", steps,
                  {"image": [file_of(pillow(image), format="PNG")]},
                  {"image": resized[top:top + crop, left:left + crop]})


def crop_and_pad(rng):
    image = noise(rng, side(rng, 4), side(rng, 4))
    top, left = int(rng.integers(image.shape[0])), int(rng.integers(image.shape[1]))
    height = int(rng.integers(1, image.shape[0] - top + 1))
    width = int(rng.integers(1, image.shape[1] - left + 1))
    edges = [int(n) for n in rng.integers(0, 9, 4)]
    colour = [int(n) for n in rng.integers(0, 256, 3)]
    part = image[top:top + height, left:left + width]
    padded = np.stack([np.pad(part[..., c], (edges[:2], edges[2:]), constant_values=colour[c])
                       for c in range(3)], -1)
    steps = [{"crop": {"tensor": "image", "top": top, "left": left, "height": height, "width": width}},
             {"pad": {"tensor": "image", "top": edges[0], "bottom": edges[1], "left": edges[2],
                      "right": edges[3], "value": colour}}]
    return before(f"crop and pad {image.shape}", steps, {"image": image}, {"image": padded})


def letterboxed(image, height, width, value, resample):
    """Ultralytics' LetterBox: the image, and what boxes need to come back."""
    old_height, old_width = image.shape[:2]
    ratio = min(height / old_height, width / old_width)
    new = max(1, round(old_width * ratio)), max(1, round(old_height * ratio))
    small = array_of(pillow(image).resize(new, resample))
    dw, dh = (width - new[0]) / 2, (height - new[1]) / 2
    top, left = round(dh - 0.1), round(dw - 0.1)
    box = np.full((height, width, image.shape[2]), value, np.uint8)
    box[top:top + new[1], left:left + new[0]] = small
    return box, (new[0] / old_width, new[1] / old_height), (left, top)


def letterbox(rng):
    image = noise(rng, side(rng), side(rng))
    height, width = side(rng, 16), side(rng, 16)
    name = str(rng.choice(list(FILTERS)))
    box, (sx, sy), (left, top) = letterboxed(image, height, width, 114, FILTERS[name])
    found = rng.uniform(-5, 100, (6, 4)).astype(np.float32)
    back = (found - np.array([left, top] * 2)) / np.array([sx, sy] * 2)
    limit = [image.shape[1], image.shape[0]] * 2
    back = back.clip(0, limit).astype(np.float32)
    steps = [decoding("rgb"), {"letterbox": {"tensor": "image", "height": height, "width": width,
                                             "filter": name, "value": [114]}}]
    raw = file_of(pillow(image), format="PNG")
    calls = [call({"image": [raw]}, {"image": box}, {"boxes": found}, {"boxes": back})]
    return case(f"letterbox {name} {image.shape} to {height} by {width}", calls, pre=steps,
                post=[{"boxes_to_image": {"tensor": "boxes", "image": "image"}}], tolerance=1e-3)


def to_tensor(rng):
    """torchvision's ToTensor and Normalize, and OpenCV's order of channels."""
    image = noise(rng, side(rng, 1, 20), side(rng, 1, 20))
    mean, std = rng.uniform(0.2, 0.8, 3).astype(np.float32), rng.uniform(0.1, 0.5, 3).astype(np.float32)
    scale = np.float32(1 / 255)
    steps, expected = [], image
    if rng.integers(2):
        steps.append({"reverse_channels": {"tensor": "image"}})
        expected = expected[..., ::-1]
    steps += [{"normalise": {"tensor": "image", "scale": float(scale), "mean": mean.tolist(),
                             "std": std.tolist()}},
              {"layout": {"tensor": "image", "from": "HWC", "to": "NCHW", "into": "x"}}]
    expected = (expected.astype(np.float32) * scale - mean) / std
    return before(f"normalise and layout {image.shape}", steps, {"image": image},
                  {"x": expected.transpose(2, 0, 1)[None]}, tolerance=1e-6)


def greyscale(rng):
    image = noise(rng, side(rng), side(rng))
    return before(f"greyscale {image.shape}", [{"greyscale": {"tensor": "image"}}], {"image": image},
                  {"image": array_of(pillow(image).convert("L"))})


def cast(rng):
    kinds = [np.uint8, np.int8, np.uint16, np.int16, np.int32, np.uint32, np.int64, np.float32, np.float64]
    a, b = (kinds[int(i)] for i in rng.integers(0, len(kinds), 2))
    name = {"float32": "FP32", "float64": "FP64"}.get(np.dtype(b).name, np.dtype(b).name.upper())
    # Within both: what lies outside is NumPy's to leave undefined.
    values = rng.integers(0, 127, (3, 5)).astype(a)
    if np.dtype(a).kind == "f":
        values = (values + rng.uniform(-0.9, 0.9, values.shape)).clip(0, 126).astype(a)
    return before(f"cast {np.dtype(a)} to {np.dtype(b)}", [{"cast": {"tensor": "x", "to": name}}],
                  {"x": values}, {"x": values.astype(b)})


def shapes(rng):
    a, b, c = (side(rng, 2, 7) for _ in range(3))
    x = rng.normal(size=(a, b, c)).astype(np.float32)
    axis = int(rng.integers(3))
    start = int(rng.integers(x.shape[axis] - 1))
    end = int(rng.integers(start + 1, x.shape[axis] + 1))
    part = x.take(range(start, end), axis)
    permuted = part.transpose(2, 0, 1)
    joined = np.concatenate([permuted, permuted], -1)
    steps = [{"slice": {"tensor": "x", "axis": axis, "start": start, "end": end, "into": "part"}},
             {"layout": {"tensor": "part", "from": "ABC", "to": "CAB"}},
             {"copy": {"tensor": "part", "into": "again"}},
             {"concat": {"tensors": ["part", "again"], "into": "joined"}},
             {"reshape": {"tensor": "joined", "shape": [joined.size]}}]
    return before(f"slice, layout, concat {x.shape}", steps, {"x": x}, {"joined": joined.ravel()})


def pcm(rng):
    kind, divisor = [(np.int8, 128), (np.int16, 32768), (np.int32, 2147483648)][int(rng.integers(3))]
    info = np.iinfo(kind)
    samples = rng.integers(info.min, info.max, (1, 64), dtype=kind, endpoint=True)
    expected = (samples / np.float64(divisor)).astype(np.float32)
    return before(f"pcm {np.dtype(kind)}", [{"pcm_to_float": {"tensor": "x"}}], {"x": samples},
                  {"x": expected})


def frames(rng):
    length, hop = side(rng, 2, 20), side(rng, 1, 20)
    x = rng.normal(size=length + side(rng, 0, 60)).astype(np.float32)
    view = np.lib.stride_tricks.sliding_window_view(x, length)[::hop]
    return before(f"frame {length} every {hop} of {x.size}",
                  [{"frame": {"tensor": "x", "length": length, "hop": hop}}], {"x": x}, {"x": view})


def stream(rng):
    """Calls of a stream: a window over the samples, a state that goes round."""
    hop, length = side(rng, 1, 9), side(rng, 9, 20)
    samples = rng.normal(size=(1, 5 * hop)).astype(np.float32)
    padded = np.concatenate([np.zeros((1, length), np.float32), samples], -1)
    state, calls = np.zeros((2, 3), np.float32), []
    for n in range(1, 6):
        new = rng.normal(size=(2, 3)).astype(np.float32)
        score = rng.normal(size=(1, 1)).astype(np.float32)
        calls.append(call({"x": samples[:, (n - 1) * hop:n * hop]},
                          {"x": padded[:, n * hop:n * hop + length], "state": state},
                          {"score": score, "stateN": new}, {"score": score}))
        state = new
    return case(f"stream of {hop} with {length}", calls,
                pre=[{"sliding_window": {"tensor": "x", "length": length}},
                     {"carry": {"tensor": "state", "from": "stateN"}}])


def scaled(rng):
    rows, features = side(rng, 2, 30), side(rng, 1, 8)
    kind = np.float32 if rng.integers(2) else np.float64
    train = (rng.normal(size=(rows, features)) * rng.uniform(0.1, 100, features)).astype(kind)
    if rng.integers(3) == 0:
        train[:, 0] = train[0, 0]
    new = (train[:2] + rng.normal(size=(2, features))).astype(kind)
    clip = bool(rng.integers(2))
    scaler = MinMaxScaler((-1, 1), clip=clip).fit(train)
    step = {"min_max": {"tensor": "x", "min": scaler.data_min_.tolist(), "max": scaler.data_max_.tolist(),
                        "low": -1.0, "high": 1.0, "clip": clip}}
    expected = scaler.transform(new)
    return before(f"min_max {np.dtype(kind)} {features} features", [step], {"x": new}, {"x": expected},
                  tolerance=1e-6 * max(1.0, float(np.abs(expected).max())))


def standardised(rng):
    rows, features = side(rng, 2, 30), side(rng, 1, 8)
    train = (rng.normal(size=(rows, features)) * rng.uniform(0.1, 100, features)).astype(np.float32)
    scaler = StandardScaler().fit(train)
    expected = scaler.transform(train[:2].copy())
    step = {"normalise": {"tensor": "x", "mean": scaler.mean_.astype(np.float32).tolist(),
                          "std": scaler.scale_.astype(np.float32).tolist()}}
    return before(f"StandardScaler {features} features", [step], {"x": train[:2]},
                  {"x": expected.astype(np.float32)}, tolerance=1e-5)


def imputed(rng):
    x = rng.normal(size=(4, side(rng, 1, 8))).astype(np.float32)
    x[1:][rng.random((3, x.shape[1])) < 0.4] = np.nan
    imputer = SimpleImputer(strategy="mean").fit(x)
    step = {"impute": {"tensor": "x", "values": imputer.statistics_.tolist()}}
    return before(f"impute {x.shape}", [step], {"x": x}, {"x": imputer.transform(x).astype(np.float32)},
                  tolerance=1e-6)


def one_hot(rng):
    words = bool(rng.integers(2))
    known = ["ash", "béech", "elm", "oak"] if words else [-3, 0, 7, 2**40]
    column = [known[int(i)] for i in rng.integers(0, 4, 5)]
    zeros = bool(rng.integers(2))
    if zeros:
        column[2] = "yew" if words else 8
    encoder = OneHotEncoder(categories=[known], handle_unknown="ignore", sparse_output=False,
                            dtype=np.float32)
    table = np.array([[value] for value in column], dtype=object if words else np.int64)
    expected = encoder.fit_transform(table)
    step = {"one_hot": {"tensor": "x", "categories": known, "unknown": "zeros" if zeros else "error"}}
    sent = column if words else np.array(column, np.int64)
    return before(f"one_hot {'texts' if words else 'integers'}", [step], {"x": sent}, {"x": expected})


def softmax_of(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def scores(rng):
    """Softmax, top-k and labels, arg-max, thresholds."""
    rows, classes = side(rng, 1, 4), side(rng, 2, 30)
    x = rng.normal(0, 5, (rows, classes)).astype(np.float32)
    if rng.integers(2):
        x = np.round(x)
    k = int(rng.integers(1, classes + 1))
    p = softmax_of(x)
    order = np.argsort(-p, axis=-1, kind="stable")[:, :k]
    at = np.quantile(p, 0.7).astype(np.float32)
    # A score at the bound itself would hang on the last bit.
    at += np.float32(1e-4) if np.abs(p - at).min() < 1e-6 else np.float32(0)
    steps = [{"arg_max": {"tensor": "x", "into": "best"}}, {"softmax": {"tensor": "x"}},
             {"top_k": {"tensor": "x", "k": k, "scores": "top", "indices": "classes"}},
             {"threshold": {"tensor": "x", "at": [float(at)], "into": "likely"}}]
    return after(f"softmax and top {k} of {x.shape}", steps, {"x": x},
                 {"best": np.argmax(x, -1), "top": np.take_along_axis(p, order, -1), "classes": order,
                  "likely": p >= at}, tolerance=1e-6)


def named(rng):
    names = ["ash", "béech", "elm"]
    index = rng.integers(0, 3, 4)
    return after("labels", [{"labels": {"tensor": "x"}}], {"x": index},
                 {"x": [names[int(i)] for i in index]}, labels=names)


def sigmoid(rng):
    x = rng.normal(0, 20, (2, 9)).astype(np.float32)
    expected = (1 / (1 + np.exp(-x.astype(np.float64)))).astype(np.float32)
    return after("sigmoid", [{"sigmoid": {"tensor": "x"}}], {"x": x}, {"x": expected}, tolerance=1e-6)


def iou(a, b):
    side = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
    common = np.prod(side.clip(0))
    union = np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2]) - common
    return common / union if union > 0 else np.float32(0)


def detections(rng):
    """torchvision.ops.nms and batched_nms, written out: greedy by score, suppressed above the bound."""
    count, classes = side(rng, 1, 60), side(rng, 1, 5)
    middle = rng.uniform(0, 60, (count, 2)).astype(np.float32)
    size = rng.uniform(1, 40, (count, 2)).astype(np.float32)
    points = rng.random((count, classes)).astype(np.float32)
    corners = np.concatenate([middle - size / 2, middle + size / 2], -1)
    centred, per_class = bool(rng.integers(2)), bool(rng.integers(2))
    least, most, limit = np.float32(0.3), np.float32(0.45), int(rng.integers(1, 20))
    kept = []
    for at in np.argsort(-points.max(-1), kind="stable"):
        kind = points[at].argmax()
        if points[at].max() < least or len(kept) == limit:
            continue
        rivals = [k for k in kept if not per_class or points[k].argmax() == kind]
        if all(iou(corners[at], corners[k]) <= most for k in rivals):
            kept.append(at)
    kept = np.array(kept, int)
    boxes = np.concatenate([middle, size], -1) if centred else corners
    raw = np.concatenate([boxes, points], -1).T[None]
    steps = [{"layout": {"tensor": "raw", "from": "NCA", "to": "AC"}},
             {"slice": {"tensor": "raw", "axis": 1, "start": 0, "end": 4, "into": "b"}},
             {"slice": {"tensor": "raw", "axis": 1, "start": 4, "end": 4 + classes, "into": "s"}},
             {"non_max_suppression": {
                 "boxes": "b", "scores": "s", "format": "cxcywh" if centred else "xyxy",
                 "score_threshold": float(least), "iou_threshold": float(most), "max_detections": limit,
                 "per_class": per_class, "kept_boxes": "boxes", "kept_scores": "scores",
                 "kept_classes": "classes"}}]
    return after(f"nms of {count} boxes, {classes} classes", steps, {"raw": np.ascontiguousarray(raw)},
                 {"boxes": corners[kept].reshape(-1, 4), "scores": points.max(-1)[kept],
                  "classes": points.argmax(-1)[kept].astype(np.int64)}, tolerance=1e-5)


def broken_images(rng):
    """Files that Pillow refuses, and ones beyond a limit, must be errors."""
    image = pillow(picture(rng, 20, 25))
    cut = int(rng.integers(4, 20)) * 10
    kind = str(rng.choice(["JPEG", "PNG"]))
    raw = file_of(image, format=kind)
    broken = raw[:-cut]
    try:
        Image.open(io.BytesIO(broken)).convert("RGB")
        raise AssertionError("Pillow reads it")
    except OSError:
        pass
    nothing = {"image": np.zeros((1, 1, 3), np.uint8)}
    fixed = {"resize": {"tensor": "image", "height": 1, "width": 1}}
    return [
        before(f"{kind} without its last {cut} bytes", [decoding("rgb"), fixed], {"image": [broken]},
               nothing, error="not a whole"),
        before(f"{kind} of too many pixels", [{"decode_image": {
            "tensor": "image", "channels": "rgb", "max_pixels": 499}}, fixed], {"image": [raw]}, nothing,
            error="the image says 25 by 20, that is 500 pixels; 1 to 499 are accepted"),
        before("no image", [decoding("rgb"), fixed], {"image": [b"GIF89a, surely"]}, nothing,
               error="expected an image of"),
    ]


ALL = [jpeg, png, resize, cover_and_crop, crop_and_pad, letterbox, to_tensor, greyscale, cast, shapes, pcm,
       frames, stream, scaled, standardised, imputed, one_hot, scores, named, sigmoid, detections,
       broken_images]


def cases(make, seed, count):
    """Cases of one kind; the same seed gives the same ones."""
    rng = np.random.default_rng([seed, ALL.index(make)])
    for _ in range(count):
        made = make(rng)
        yield from made if isinstance(made, list) else [made]
