"""What the agent's command line says on ARM is what it says on this machine."""

import tempfile
import unittest
from pathlib import Path

import machine


class Programs(unittest.TestCase):
    def same(self, *arguments, status, **options):
        """Runs a command everywhere; everything printed is the same, but for the program's name."""
        native = machine.native().run(*arguments, **options)
        self.assertEqual(native.returncode, status, native.stderr)
        wanted = (status, *(text.replace("dunlin agent", "dunlin-agent") for text in (native.stdout, native.stderr)))
        for arm in machine.arm_machines():
            with self.subTest(machine=arm.name):
                ended = arm.run(*arguments, **options)
                self.assertEqual((ended.returncode, ended.stdout, ended.stderr), wanted)
        return native

    def test_version_help_and_default_configuration(self):
        self.assertRegex(self.same("--version", status=0).stdout, r"^dunlin-agent \d+\.\d+\.\d+$")
        self.assertIn("enroll", self.same("--help", status=0).stdout)
        self.assertIn("Join a fleet", self.same("enroll", "--help", status=0).stdout)
        self.assertIn("[inference]", self.same("default-config", status=0).stdout)

    def test_a_wrong_command_line(self):
        self.assertIn("--nonsense", self.same("run", "--nonsense", status=64).stderr)

    def test_every_fault_of_a_configuration_is_listed(self):
        with tempfile.TemporaryDirectory() as folder:
            config = Path(folder) / "agent.toml"
            config.write_text('state_dir = "here"\n[inference]\nlisten = "0.0.0.0:80"\nnonsense = 3\n')
            said = self.same("run", "--config", config, status=64).stderr
            self.assertIn("state_dir: expected an absolute path", said)
            self.assertIn("inference.listen: expected a loopback address", said)

    def test_a_token_that_is_none(self):
        with tempfile.TemporaryDirectory() as folder:
            config = Path(folder) / "agent.toml"
            config.write_text(f'state_dir = "{folder}/state"\n')
            ended = self.same("enroll", "--config", config, status=1, input="no token at all\n")
            self.assertIn("token", ended.stderr)


if __name__ == "__main__":
    unittest.main()
