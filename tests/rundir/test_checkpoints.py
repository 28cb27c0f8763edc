"""Which checkpoints of a run directory are chosen."""

import pytest

from rundir.checkpoints import check_single, parse_epochs, select_checkpoints
from utils.errors import UserError


@pytest.fixture
def run_dir(tmp_path):
    """A directory with the files of three epochs, of which the second and the third tested best."""
    for name in ("epoch_001.pth", "epoch_002.pth", "epoch_003.pth", "best_model.pth"):
        (tmp_path / name).touch()
    (tmp_path / "metrics.csv").write_text("epoch,test_top1\n1,50.0\n2,60.0\n3,60.0\n")
    return tmp_path


@pytest.mark.parametrize(
    ("selection", "epochs"),
    [("all", [1, 2, 3]), ("last", [3]), ("1,3", [1, 3]), ("2-9", [2, 3]), ("1, 2-3", [1, 2, 3])],
)
def test_selections(run_dir, selection, epochs):
    assert list(select_checkpoints(run_dir, selection)) == epochs


def test_best_is_the_first_of_the_best_test_accuracy(run_dir):
    assert select_checkpoints(run_dir, "best") == {2: run_dir / "best_model.pth"}
    for single in ("best", "last", "17", "weights.pth.tar"):
        check_single(single)
    for several in ("all", "1,2", "1-2", "a.pth,b.pth"):
        with pytest.raises(UserError, match="--checkpoint "):
            check_single(several)


def test_all_of_a_run_that_kept_the_best_model_alone(run_dir):
    for path in run_dir.glob("epoch_*"):
        path.unlink()
    assert select_checkpoints(run_dir, "all") == {2: run_dir / "best_model.pth"}
    for selection in ("last", "2"):
        with pytest.raises(UserError, match="give best for its best_model"):
            select_checkpoints(run_dir, selection)
    (run_dir / "best_model.pth").unlink()
    for selection in ("all", "last", "2"):
        with pytest.raises(UserError, match=r"holds no checkpoints \(epoch_NNN\.pth\)$"):
            select_checkpoints(run_dir, selection)


@pytest.mark.parametrize("text", ["", "x", "3-1", "1,,2", "-3"])
def test_wrong_selections(text):
    with pytest.raises(UserError, match="--checkpoints"):
        parse_epochs(text)
