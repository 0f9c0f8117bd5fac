"""NVIDIA's tritonclient, unchanged: HTTP and gRPC, JSON and binary, packed, streamed."""

import queue
import unittest

import numpy as np
import tritonclient.grpc
import tritonclient.http
from tritonclient.utils import InferenceServerException

from worker import DTYPES, Worker, digits, echo, golden, sample

SHAPE = [2, 3]


def pixels(client, values, **how):
    tensor = client.InferInput("pixels", list(values.shape), "FP32")
    tensor.set_data_from_numpy(values, **how)
    return tensor


class OfTheServer:
    """What both flavours do alike; the class below says with which client."""

    def test_it_lives_is_ready_and_says_what_it_is(self):
        self.assertTrue(self.client.is_server_live())
        self.assertTrue(self.client.is_server_ready())
        for name, version, ready in [
            ("digits", "", True),
            ("digits", "2", True),
            ("digits", "3", False),
            ("cats", "", False),
        ]:
            self.assertEqual(self.client.is_model_ready(name, version), ready, (name, version))
        server = self.json(self.client.get_server_metadata)
        self.assertEqual(server["name"], "dunlin")
        self.assertIn("binary_tensor_data", server["extensions"])
        model = self.json(self.client.get_model_metadata, "digits", "2")
        self.assertEqual((model["name"], model["versions"]), ("digits", ["2"]))
        self.assertEqual(model["inputs"][0]["name"], "pixels")
        self.assertEqual([int(d) for d in model["inputs"][0]["shape"]], [1, 64])

    def test_the_fleet_decides_what_runs(self):
        index = self.json(self.client.get_model_repository_index)
        models = index["models"] if isinstance(index, dict) else index
        self.assertEqual([(m["name"], m["version"], m["state"]) for m in models], [("digits", "2", "READY")])
        for change in (self.client.load_model, self.client.unload_model):
            with self.assertRaisesRegex(InferenceServerException, "decided by the fleet"):
                change("digits")

    def test_statistics_count_what_was_answered(self):
        count = lambda: int(
            self.json(self.client.get_inference_statistics, "digits")["model_stats"][0].get("inference_count", 0)
        )
        before = count()
        values, _ = golden(0)
        self.client.infer("digits", [pixels(self.flavour, values)])
        self.assertEqual(count(), before + 1)

    def test_it_answers_what_the_training_runtime_answered(self):
        for case in range(12):
            values, expected = golden(case)
            for version in ("", "2"):
                result = self.client.infer(
                    "digits",
                    [pixels(self.flavour, values)],
                    model_version=version,
                    request_id=f"case-{case}",
                    parameters={"mine": "kept"},
                )
                np.testing.assert_allclose(result.as_numpy("probabilities"), expected, atol=1e-4)
                answer = self.response(result)
                self.assertEqual((answer["id"], answer["model_version"]), (f"case-{case}", "2"))
                self.assertEqual(answer["parameters"], {"mine": self.kept})

    def test_a_wrong_request_is_told_what_was_expected(self):
        values, _ = golden(0)
        for tensor, hint in [
            (pixels(self.flavour, values.reshape(64, 1)), r'expected "pixels" FP32 \[1, 64\], got FP32 \[64, 1\]'),
            (self.flavour.InferInput("pixels", [1, 64], "INT32"), "got INT32"),
            (self.flavour.InferInput("voxels", [1, 64], "FP32"), "is unknown"),
        ]:
            if tensor.datatype() == "INT32":
                tensor.set_data_from_numpy(values.astype(np.int32))
            elif tensor.name() == "voxels":
                tensor.set_data_from_numpy(values)
            with self.assertRaisesRegex(InferenceServerException, hint):
                self.client.infer("digits", [tensor])
        with self.assertRaisesRegex(InferenceServerException, 'output "classes" is unknown'):
            outputs = [self.flavour.InferRequestedOutput("classes")]
            self.client.infer("digits", [pixels(self.flavour, values)], outputs=outputs)
        with self.assertRaisesRegex(InferenceServerException, "version 2 is"):
            self.client.infer("digits", [pixels(self.flavour, values)], model_version="9")

    def test_not_a_number_goes_through_in_binary(self):
        values = np.full((1, 64), np.nan, dtype=np.float32)
        result = self.client.infer("digits", [pixels(self.flavour, values)])
        self.assertTrue(np.isnan(result.as_numpy("probabilities")).all())


class Http(OfTheServer, unittest.TestCase):
    flavour = tritonclient.http
    kept = "kept"

    @classmethod
    def setUpClass(cls):
        cls.worker = Worker(digits)
        cls.client = tritonclient.http.InferenceServerClient(cls.worker.rest)

    @classmethod
    def tearDownClass(cls):
        cls.client.close()
        cls.worker.stop()

    def json(self, call, *arguments):
        return call(*arguments)

    def response(self, result):
        return result.get_response()

    def test_json_and_binary_mix_in_every_way(self):
        values, expected = golden(3)
        output = tritonclient.http.InferRequestedOutput
        for sent in (True, False):
            for wanted in (None, True, False):
                outputs = None if wanted is None else [output("probabilities", binary_data=wanted)]
                tensor = pixels(tritonclient.http, values, binary_data=sent)
                result = self.client.infer("digits", [tensor], outputs=outputs)
                got = result.as_numpy("probabilities")
                self.assertEqual(got.shape, (1, 10))
                np.testing.assert_allclose(got, expected, atol=1e-4)
                is_binary = "data" not in result.get_output("probabilities")
                self.assertEqual(is_binary, wanted is not False)

    def test_packed_requests_are_unpacked(self):
        values, expected = golden(5)
        for algorithm in ("gzip", "deflate"):
            for sent in (True, False):
                result = self.client.infer(
                    "digits",
                    [pixels(tritonclient.http, values, binary_data=sent)],
                    request_compression_algorithm=algorithm,
                    response_compression_algorithm=algorithm,
                )
                np.testing.assert_allclose(result.as_numpy("probabilities"), expected, atol=1e-4)

    def test_extensions_that_are_not_there_are_refused(self):
        values, _ = golden(0)
        outputs = [tritonclient.http.InferRequestedOutput("probabilities", class_count=3)]
        with self.assertRaisesRegex(InferenceServerException, "classification extension"):
            self.client.infer("digits", [pixels(tritonclient.http, values)], outputs=outputs)

    def test_many_requests_at_once(self):
        values, expected = golden(1)
        with tritonclient.http.InferenceServerClient(self.worker.rest, concurrency=8) as client:
            tensor = [pixels(tritonclient.http, values)]
            waiting = [client.async_infer("digits", tensor) for _ in range(64)]
            for request in waiting:
                result = request.get_result(timeout=60)
                np.testing.assert_allclose(result.as_numpy("probabilities"), expected, atol=1e-4)


class Grpc(OfTheServer, unittest.TestCase):
    flavour = tritonclient.grpc
    kept = {"string_param": "kept"}

    @classmethod
    def setUpClass(cls):
        cls.worker = Worker(digits)
        cls.client = tritonclient.grpc.InferenceServerClient(cls.worker.grpc)

    @classmethod
    def tearDownClass(cls):
        cls.client.close()
        cls.worker.stop()

    def json(self, call, *arguments):
        return call(*arguments, as_json=True)

    def response(self, result):
        return result.get_response(as_json=True)

    def test_packed_messages_are_unpacked(self):
        values, expected = golden(5)
        for algorithm in ("gzip", "deflate"):
            result = self.client.infer(
                "digits", [pixels(tritonclient.grpc, values)], compression_algorithm=algorithm
            )
            np.testing.assert_allclose(result.as_numpy("probabilities"), expected, atol=1e-4)

    def test_a_stream_answers_in_order_and_outlives_a_wrong_request(self):
        answers = queue.Queue()
        with tritonclient.grpc.InferenceServerClient(self.worker.grpc) as client:
            client.start_stream(lambda result, error: answers.put((result, error)))
            for case in range(12):
                client.async_stream_infer("digits", [pixels(tritonclient.grpc, golden(case)[0])])
            client.async_stream_infer("cats", [pixels(tritonclient.grpc, golden(0)[0])])
            client.async_stream_infer("digits", [pixels(tritonclient.grpc, golden(0)[0])])
            for case in range(12):
                result, error = answers.get(timeout=60)
                self.assertIsNone(error)
                np.testing.assert_allclose(result.as_numpy("probabilities"), golden(case)[1], atol=1e-4)
            self.assertIn("served: digits", str(answers.get(timeout=60)[1]))
            self.assertIsNone(answers.get(timeout=60)[1])
            client.stop_stream()

    def test_over_a_unix_socket(self):
        worker = Worker(digits, grpc_over_socket=True)
        self.addCleanup(worker.stop)
        values, expected = golden(2)
        # gRPC's own name for a socket is no valid authority.
        named = {"url": f"unix:{worker.grpc_socket}", "channel_args": [("grpc.default_authority", "localhost")]}
        with tritonclient.grpc.InferenceServerClient(**named) as client:
            result = client.infer("digits", [pixels(tritonclient.grpc, values)])
            np.testing.assert_allclose(result.as_numpy("probabilities"), expected, atol=1e-4)


class EveryElementType(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.worker = Worker(lambda folder: echo(folder, SHAPE))

    @classmethod
    def tearDownClass(cls):
        cls.worker.stop()

    def inputs(self, flavour, **how):
        tensors = []
        for name in DTYPES:
            tensor = flavour.InferInput(f"in_{name}", SHAPE, name)
            # JSON has no 16-bit floats by this client's rule; the server takes them.
            binary = {"binary_data": True} if name == "FP16" and how else how
            tensor.set_data_from_numpy(sample(name, SHAPE), **binary)
            tensors.append(tensor)
        return tensors

    def check(self, result):
        for name in DTYPES:
            got = result.as_numpy(f"out_{name}")
            np.testing.assert_array_equal(got, sample(name, SHAPE), name)

    def test_in_binary_over_http(self):
        with tritonclient.http.InferenceServerClient(self.worker.rest) as client:
            self.check(client.infer("echo", self.inputs(tritonclient.http, binary_data=True)))

    def test_in_json_over_http(self):
        wanted = [
            tritonclient.http.InferRequestedOutput(f"out_{name}", binary_data=name == "FP16") for name in DTYPES
        ]
        with tritonclient.http.InferenceServerClient(self.worker.rest) as client:
            inputs = self.inputs(tritonclient.http, binary_data=False)
            self.check(client.infer("echo", inputs, outputs=wanted))

    def test_over_grpc(self):
        with tritonclient.grpc.InferenceServerClient(self.worker.grpc) as client:
            self.check(client.infer("echo", self.inputs(tritonclient.grpc)))
