"""A design becomes command lines."""

from experiments.reproduce import arms, read_design, recorded

GIVEN = {"wikitext2": "/here/text", "stories260k": None, "tinystories": None}
ARGUMENTS = GIVEN | {
    "study": "full", "results_dir": "results", "cache_dir": ".cache", "launcher": "basic", "data": None,
    "data.path": None, "parts": "wikitext2,stories260k",
}  # fmt: skip


def test_only_the_parts_asked_for_run_and_those_without_their_input_are_named(capsys):
    found = arms(read_design("full"), ARGUMENTS)
    assert [arm.name for arm in found] == ["text_generalization", "text_optimal_rank", "text_convergence"]
    assert "stories260k: not run, it needs stories260k=" in capsys.readouterr().out
    assert all("data.path=/here/text" in arm.arguments for arm in found)
    everything = arms(read_design("full"), ARGUMENTS | {"parts": None})
    assert len(everything) > len(found)


def test_a_study_records_its_commands_without_the_machines_paths():
    command = recorded(arms(read_design("full"), ARGUMENTS)[0], GIVEN)
    assert "data=wikitext2 data.path={wikitext2} " in command
    assert "/here" not in command
