"""`realm bench` gives the rows that scripts read, and the sandbox costs next to nothing."""


def test_rows_have_the_promised_fields(run, smollm2):
    rows = run("bench", "--model", smollm2, "--pp", 64, "--tg", 8, "--batch", "1,3", "--sandbox", "--repeat", 1,
               "--json").json
    assert [(r["test"], r["batch"], r["sandbox"]) for r in rows] == [
        ("pp64", 1, False), ("tg8", 1, False), ("tg8", 1, True), ("tg8", 3, False), ("tg8", 3, True)]
    assert all(r["tokens_per_second"] > 0 for r in rows)


def test_a_guest_that_drives_every_token_is_about_as_fast_as_native(run, smollm2):
    """The goal is 99.5 %, shown on a quiet machine (docs/BENCHMARKS.md); here a bound that holds on a busy one."""
    rows = run("bench", "--model", smollm2, "--pp", 0, "--tg", 48, "--batch", "1,8", "--sandbox", "--repeat", 5,
               "--json").json
    for row in rows:
        if row["sandbox"]:
            assert row["of_native"] > 0.9, row
