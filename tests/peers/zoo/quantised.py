"""A model of the zoo, quantised as edge projects do it: statically, to int8, as QDQ pairs."""

import tempfile
from pathlib import Path

import numpy as np
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

import pictures

CALIBRATION_LINES = 24


class Lines(CalibrationDataReader):
    """Lines of text, some upside down."""

    def __init__(self):
        lines = pictures.lines(48, 192, CALIBRATION_LINES, seed=1)
        self.left = iter([{"x": line[np.newaxis]} for line in lines])

    def get_next(self):
        return next(self.left, None)


def classifier(_given, other):
    with tempfile.TemporaryDirectory() as folder:
        prepared, done = Path(folder) / "prepared.onnx", Path(folder) / "quantised.onnx"
        quant_pre_process(other("ocr-classifier"), prepared, skip_symbolic_shape=True)
        quantize_static(
            prepared,
            done,
            Lines(),
            quant_format=QuantFormat.QDQ,
            activation_type=QuantType.QInt8,
            weight_type=QuantType.QInt8,
        )
        return done.read_bytes()
