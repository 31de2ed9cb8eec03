import pytest

from nnunetv2_mapo.method.choices import read_answers
from nnunetv2_mapo.tools.choose import session as module
from nnunetv2_mapo.tools.choose.candidates import Differing
from nnunetv2_mapo.tools.choose.session import SessionError


@pytest.fixture
def session(make_session):
    session = make_session()
    session.join("page", "Ada")
    return session


def test_an_answer_is_on_the_disk_before_the_next_question(session):
    identifier, _ = session.ask()
    question = session.find(identifier)
    session.answer(identifier, "choice", 2, 0, 3.456)
    [answer] = read_answers(session.folder.path).values()
    assert (answer.image, answer.rater, answer.seconds) == ("image_2", "Ada", 3.46)
    assert (answer.best, answer.worst) == (question.shown[2], question.shown[0])
    kept = session.folder.read_kept("image_2")
    assert (answer.image_sha256, answer.candidates_sha256) == kept[:2]
    assert session.find(session.ask()[0]).image == "image_1"


def test_the_next_question_is_the_one_that_was_announced(session):
    current, upcoming = session.ask()
    session.answer(current, "equal", None, None, 1)
    assert session.ask()[0] == upcoming


def test_an_answer_that_is_sent_twice_counts_once(session):
    identifier, _ = session.ask()
    for _ in range(2):
        session.answer(identifier, "skip", None, None, 1)
    assert len(read_answers(session.folder.path)) == 1


def test_an_answer_to_an_older_question_is_refused(session):
    first, second = session.ask()
    for each in (first, second):
        session.answer(each, "equal", None, None, 1)
        session.ask()
    with pytest.raises(SessionError, match="not open"):
        session.answer(first, "equal", None, None, 1)


@pytest.mark.parametrize(
    ("verdict", "best", "worst", "seconds"),
    [
        ("choice", None, None, 1), ("choice", 0, 0, 1), ("choice", 3, None, 1),
        ("choice", -1, None, 1), ("equal", 0, None, 1), ("skip", None, 1, 1),
        ("better", 0, None, 1), ("choice", 0, 1, -1), ("choice", 0, 1, float("nan")),
        ("choice", 0, 1, float("inf")), ("choice", True, None, 1), ("choice", "0", None, 1),
    ],
)  # fmt: skip
def test_what_is_no_answer_is_refused(session, verdict, best, worst, seconds):
    with pytest.raises(SessionError, match="is no answer") as refused:
        session.answer(session.ask()[0], verdict, best, worst, seconds)
    assert refused.value.status == 400
    assert not read_answers(session.folder.path)


def test_undo_asks_the_same_again_in_the_same_order(session):
    first, second = session.ask()
    session.answer(first, "choice", 0, 1, 1)
    assert session.ask()[0] == second
    session.undo()
    again, upcoming = session.ask()
    assert session.find(again) == session.find(first)
    assert upcoming == second
    assert not read_answers(session.folder.path)
    with pytest.raises(SessionError, match="no answer to take back"):
        session.undo()


def test_a_later_sitting_goes_on_where_the_last_one_ended(session, make_session):
    session.answer(session.ask()[0], "equal", None, None, 1)
    later = make_session()
    assert later.last_rater == "Ada"
    later.join("other", "Ada")
    assert later.find(later.ask()[0]).image == "image_1"
    later.join("other", "Bob")  # who has seen nothing
    assert later.find(later.ask()[0]).image == "image_2"


def test_a_second_page_is_refused_unless_it_takes_over(session):
    with pytest.raises(SessionError, match="Ada judges in another page") as refused:
        session.join("second", "Ada")
    assert refused.value.status == 423
    session.join("second", "Ada", take_over=True)
    session.check("second")
    with pytest.raises(SessionError, match="taken over"):
        session.check("page")


def test_a_page_that_was_closed_or_is_silent_makes_room(session, monkeypatch):
    session.leave("page")
    session.join("second", "Ada")
    monkeypatch.setattr(module, "SILENCE", 0)
    session.join("third", "Ada")


def test_nobody_is_asked_without_a_name(make_session):
    with pytest.raises(SessionError, match="name is needed"):
        make_session().join("page", "  ")


def test_the_end_is_said(session):
    for _ in range(3):
        assert not session.describe()["finished"]
        session.answer(session.ask()[0], "equal", None, None, 2)
    assert session.ask() == ("", "")
    state = session.describe()
    assert state["finished"]
    assert (state["answered"], state["total"], state["seconds"]) == (3, 3, 2)


def test_answers_about_other_candidates_are_asked_again_and_not_taken_back(
    session, make_session, folder, capsys
):
    session.answer(session.ask()[0], "choice", 0, 1, 1)
    image, candidates, _ = folder.read_image("image_2")
    found = Differing(candidates[:2], (0.0, 0.1), (0, 1), 0.5, 1)
    folder.write_image("image_2", image, found, {"spacing": [1, 1, 1]}, image.shape[1:])
    later = make_session()
    assert "Answers about image_2 are about candidates that are not" in capsys.readouterr().out
    later.join("other", "Ada")
    assert (later.describe()["answered"], later.describe()["can_undo"]) == (0, False)
    asked = []
    while identifier := later.ask()[0]:
        asked.append(later.find(identifier).image)
        later.answer(identifier, "equal", None, None, 1)
    assert sorted(asked) == ["image_0", "image_1", "image_2"]
    for _ in range(3):
        later.undo()
    with pytest.raises(SessionError, match="no answer to take back"):
        later.undo()
