"""Models of the zoo, quantised as edge projects do it, by ONNX Runtime's own tools."""

import tempfile
from pathlib import Path

import numpy as np
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)
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


def quantised(given, quantise):
    with tempfile.TemporaryDirectory() as folder:
        prepared, done = Path(folder) / "prepared.onnx", Path(folder) / "quantised.onnx"
        quant_pre_process(given, prepared, skip_symbolic_shape=True)
        quantise(prepared, done)
        return done.read_bytes()


def classifier(other, **how):
    given = other("ocr-classifier")
    return quantised(given, lambda model, done: quantize_static(model, done, Lines(), **how))


def classifier_qdq(_given, other):
    return classifier(
        other,
        quant_format=QuantFormat.QDQ,
        activation_type=QuantType.QInt8,
        weight_type=QuantType.QInt8,
    )


def classifier_qoperator(_given, other):
    return classifier(
        other,
        quant_format=QuantFormat.QOperator,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )


def recogniser_dynamic(_given, other):
    return quantised(other("ocr-recogniser"), quantize_dynamic)
