"""The throughput benchmark in a tiny form: it runs and writes its files; no figure is checked."""

import json


def test_throughput(run_benchmark, tmp_path):
    tiny = (
        "--rounds 2 --steps 10 --envs Pendulum-v1 --settings 16:1 --n-envs 2 --endurance-steps 60 "
        "--parts compare step scaling endurance"
    )
    printed = run_benchmark("throughput", *tiny.split(), "--out", tmp_path)
    assert "| Pendulum-v1 | 16 | 1 |" in printed
    results = json.loads((tmp_path / "throughput.json").read_text())
    (row,) = results["compare"]
    assert {"SB3", "plain", "paper"} <= set(row["rates"])
    for name in ("plain", "paper"):
        ratios = [a / b for a, b in zip(row["rates"][name], row["rates"]["SB3"], strict=True)]
        assert row["ratios"][f"{name}/SB3"] == ratios
    assert [step["batch_norm"] for step in results["step"]] == ["no", "yes"]
    assert len(results["endurance"][0]["rates"]) == 30
    assert [row.get("n_envs", row.get("batch")) for row in results["scaling"]] == [2, 16, 64, 256, 1024, 64, 64, 64]
    for picture in ("throughput.png", "scaling.png"):
        assert (tmp_path / picture).stat().st_size > 1000
