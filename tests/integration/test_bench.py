"""`realm bench` gives the rows that scripts read, and the sandbox costs next to nothing."""


def test_rows_have_the_promised_fields(run, smollm2):
    rows = run("bench", "--model", smollm2, "--pp", 64, "--tg", 8, "--batch", "1,3", "--sandbox", "--repeat", 1,
               "--json").json
    assert [(r["test"], r["batch"], r["sandbox"]) for r in rows] == [
        ("pp64", 1, False), ("tg8", 1, False), ("tg8", 1, True), ("tg8", 3, False), ("tg8", 3, True)]
    assert all(r["tokens_per_second"] > 0 for r in rows)


def test_a_guest_that_drives_every_token_costs_microseconds(run, smollm2):
    """The goal is 0.5 % of a step (docs/BENCHMARKS.md). Rates shake by more than that; the time of a step outside of
    the forward pass does not, so it is what is held here, to a bound that a busy machine keeps."""
    rows = run("bench", "--model", smollm2, "--pp", 0, "--tg", 48, "--batch", "1,8", "--sandbox", "--repeat", 5,
               "--json").json
    native = {row["batch"]: row for row in rows if not row["sandbox"]}
    for row in rows:
        if row["sandbox"]:
            assert row["outside_us"] - native[row["batch"]]["outside_us"] < 150 * row["batch"] + 350, row
            assert row["steps"] <= 48 * 1.5, row  # the batch stays together
