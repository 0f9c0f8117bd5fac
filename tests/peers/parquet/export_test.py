"""A real fleet's windows, exported, in pandas and DuckDB."""

import json
import tempfile
import unittest
from pathlib import Path

import duckdb
import pandas as pd
import pyarrow.parquet as pq
from digits import answered
from fleet import Fleet

ASKED = 300


class Exported(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = Path(cls.enterClassContext(tempfile.TemporaryDirectory(prefix="dunlin-pq-")))
        fleet = cls.enterClassContext(Fleet(cls.folder))
        fleet.begin()
        cls.fleet = fleet
        cls.drift = answered(fleet, ASKED)
        for table in ("windows", "histograms", "reference"):
            fleet.ok("export", table, "--family", "digits", "--out", f"{table}.parquet")

    def read(self, table):
        return pd.read_parquet(self.folder / f"{table}.parquet")

    def query(self, sql):
        return duckdb.sql(sql.format(folder=self.folder)).fetchall()

    def test_pandas_adds_windows_up_to_the_drift_apis_numbers(self):
        windows = self.read("windows")
        counted = windows[windows["counted"]]
        self.assertEqual(int(counted["inferences"].sum()), self.drift["inferences"])
        self.assertEqual(int(counted["errors"].sum()), self.drift["errors"])
        self.assertEqual(len(counted), self.drift["windows"])
        outputs = pd.DataFrame(counted["outputs"].to_list()).sum().astype(int).to_list()
        self.assertEqual(outputs, self.drift["output_mix"]["current"])
        mean = counted["confidence_sum_micro"].sum() / 1e6 / counted["inferences"].sum()
        self.assertAlmostEqual(mean, self.drift["confidence_mean"], places=12)
        self.assertEqual(str(windows["window_start"].dtype), "datetime64[ms, UTC]")
        first = windows["window_start"].min().timestamp() * 1000
        self.assertEqual(round(first), self.drift["from_ms"])
        self.assertEqual(windows["inferences"].dtype, "uint64")

    def test_duckdb_says_the_same(self):
        rows = self.query(
            "SELECT sum(inferences), sum(errors), count(*), max(epoch_ms(window_end)), sum(list_sum(latency_buckets))"
            " FROM '{folder}/windows.parquet' WHERE counted"
        )
        drift = self.drift
        expected = (drift["inferences"], drift["errors"], drift["windows"], drift["until_ms"], drift["inferences"])
        self.assertEqual(rows, [expected])

    def test_histograms_and_reference_join_to_every_bin(self):
        rows = self.query(
            "WITH bins AS (SELECT version, signal, position, unnest(counts) AS n,"
            "    generate_subscripts(counts, 1) - 1 AS bin FROM '{folder}/histograms.parquet'"
            "    WHERE left_out IS NULL AND isolated IS NULL),"
            " live AS (SELECT version, signal, position, bin, sum(n) AS n FROM bins GROUP BY ALL)"
            " SELECT r.name, r.bin, r.lower, r.upper, r.count, l.n FROM '{folder}/reference.parquet' r"
            " LEFT JOIN live l USING (version, signal, position, bin) WHERE r.signal = 'confidence'"
            " ORDER BY r.bin"
        )
        self.assertEqual(sum(n for *_, n in rows), self.drift["inferences"])
        self.assertTrue(all(lower < upper for _, _, lower, upper, _, _ in rows))
        outside = self.query(
            "SELECT position, sum(under + \"over\") FROM '{folder}/histograms.parquet'"
            " WHERE signal = 'feature' AND left_out IS NULL AND isolated IS NULL GROUP BY position"
        )
        for position, n in outside:
            self.assertEqual(int(n), self.drift["features"][position]["outside"])
        self.assertGreater(sum(n for _, n in outside), 0)

    def test_the_file_says_where_the_model_comes_from(self):
        about = pq.read_metadata(self.folder / "windows.parquet").metadata
        bundles = json.loads(about[b"dunlin.bundles"])
        windows = self.read("windows")
        self.assertEqual({b["bundle"] for b in bundles}, set(windows["bundle"]))
        self.assertEqual({b["model"] for b in bundles}, set(windows["model"]))
        self.assertEqual(bundles[0]["files"]["profile.json"]["sha256"], windows["profile"][0])
        self.assertTrue(bundles[0]["lineage"]["code"])
        rows = self.query("SELECT decode(value) FROM parquet_kv_metadata('{folder}/windows.parquet')"
                          " WHERE decode(key) = 'dunlin.format'")
        self.assertEqual(rows, [("dunlin.windows/1",)])

    def test_an_export_that_is_refused_leaves_the_old_file(self):
        before = (self.folder / "windows.parquet").read_bytes()
        status, _, errors = self.fleet.run(
            "export", "windows", "--family", "digits", "--cohort", "canary", "--out", "windows.parquet"
        )
        self.assertEqual(status, 1, errors)
        self.assertEqual((self.folder / "windows.parquet").read_bytes(), before)
        self.assertEqual(list(self.folder.glob("*.new-*")), [])


if __name__ == "__main__":
    unittest.main()
