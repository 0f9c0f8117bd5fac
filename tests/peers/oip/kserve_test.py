"""kserve's own inference clients, unchanged."""

import unittest

import numpy as np
from kserve import InferInput, InferRequest, InferenceGRPCClient, InferenceRESTClient
from kserve.inference_client import RESTConfig

from worker import Worker, digits, golden


def request(case: int, binary: bool) -> InferRequest:
    values, _ = golden(case)
    tensor = InferInput("pixels", list(values.shape), "FP32")
    tensor.set_data_from_numpy(values, binary_data=binary)
    parameters = {"binary_data_output": True} if binary else None
    return InferRequest("digits", [tensor], request_id="7", parameters=parameters)


class Kserve(unittest.IsolatedAsyncioTestCase):
    @classmethod
    def setUpClass(cls):
        cls.worker = Worker(digits)

    @classmethod
    def tearDownClass(cls):
        cls.worker.stop()

    def check(self, response, case):
        self.assertEqual((response.id, response.model_name), ("7", "digits"))
        np.testing.assert_allclose(response.outputs[0].as_numpy(), golden(case)[1], atol=1e-4)

    async def test_rest(self):
        url = f"http://{self.worker.rest}"
        async with InferenceRESTClient(RESTConfig(protocol="v2", retries=0)) as client:
            self.assertTrue(await client.is_server_live(url))
            self.assertTrue(await client.is_server_ready(url))
            self.assertTrue(await client.is_model_ready(url, "digits"))
            for case in range(12):
                for binary in (False, True):
                    sent = request(case, binary)
                    self.check(await client.infer(url, sent, model_name="digits"), case)

    async def test_grpc(self):
        async with InferenceGRPCClient(self.worker.grpc) as client:
            self.assertTrue(await client.is_server_live())
            self.assertTrue(await client.is_server_ready())
            self.assertTrue(await client.is_model_ready("digits"))
            for case in range(12):
                for binary in (False, True):
                    self.check(await client.infer(request(case, binary)), case)
