from dataclasses import replace

from nnunetv2_mapo.method.choices import Answer
from nnunetv2_mapo.tools.choose.folder import Kept
from nnunetv2_mapo.tools.choose.questions import REPEAT_AFTER, Asking, Question

READY = {
    f"image_{number}": Kept("sha", "sha", 4, (1, 3), disagreement, 2)
    for number, disagreement in enumerate((0.1, 0.5, 0.3, 0.2, 0.4, 0.6, 0.7))
}
ORDER = ["image_6", "image_5", "image_1", "image_4", "image_2", "image_3", "image_0"]


def reply(question: Question, verdict: str = "choice") -> Answer:
    best = question.shown[0] if verdict == "choice" else None
    return Answer(question.image, "sha", "sha", question.shown, verdict, "Ada", 1.0, "now", best,
                  region=question.region, repeat=question.repeat)  # fmt: skip


def answer_all(asking: Asking, verdict: str = "choice") -> list[Answer]:
    mine: list[Answer] = []
    while question := asking.choose_next(READY, mine, (), "Ada", is_complete=True):
        mine.append(reply(question, verdict))
    return mine


def test_the_most_informative_image_comes_first():
    assert [each.image for each in answer_all(Asking(False, 0, 0))] == ORDER


def test_regions_of_the_two_that_differ_most_are_asked_about_one_by_one():
    mine = answer_all(Asking(True, 0, 0))
    assert [(each.image, each.region) for each in mine[:3]] == [
        ("image_6", 0), ("image_6", 1), ("image_5", 0)
    ]  # fmt: skip
    assert len(mine) == 14
    assert all(sorted(each.shown) == [1, 3] for each in mine)


def test_a_repetition_comes_after_others_and_once():
    mine = answer_all(Asking(False, 1, 0))
    places = {(each.image, each.repeat): place for place, each in enumerate(mine)}
    assert len(places) == len(mine) == 14
    first = [places[name, False] for name in ORDER]
    again = [places[name, True] for name in ORDER]
    assert again[0] - first[0] == REPEAT_AFTER
    assert all(second > before for before, second in zip(first, again, strict=True))


def test_what_was_skipped_is_not_repeated():
    assert len(answer_all(Asking(False, 1, 0), "skip")) == 7


def test_about_a_share_is_repeated():
    ready = {f"image_{number}": READY["image_0"] for number in range(500)}
    asking = Asking(False, 0.1, 0)
    mine = [
        Answer(name, "sha", "sha", (0, 1), "equal", "Ada", 1.0, "now") for name in ready
    ]  # fmt: skip
    number = 0
    while question := asking.choose_next(ready, mine, (), "Ada", is_complete=True):
        mine.append(replace(mine[0], image=question.image, repeat=True))
        number += 1
    assert 30 <= number <= 70


def test_another_rater_is_asked_everything_in_another_order_of_the_candidates():
    asking = Asking(False, 0, 0)
    orders = {
        asking.choose_next(READY, [], (), rater, is_complete=True).shown
        for rater in ("Ada", "Bob", "Cleo", "Dan")
    }
    assert len(orders) > 1
    assert all(sorted(shown) == [0, 1, 2, 3] for shown in orders)


def test_what_is_on_the_page_is_not_chosen_again():
    asking = Asking(False, 0, 0)
    following = asking.choose_next(READY, [], [("image_6", None)], "Ada", is_complete=False)
    assert following.image == "image_5"


def test_a_repetition_shows_the_candidates_in_another_order():
    ready = {f"image_{number}": READY["image_0"] for number in range(50)}
    asking, mine = Asking(True, 1, 0), []  # of two candidates
    while question := asking.choose_next(ready, mine, (), "Ada", is_complete=True):
        mine.append(reply(question))
    first = {(each.image, each.region): each.shown for each in mine if not each.repeat}
    again = {(each.image, each.region): each.shown for each in mine if each.repeat}
    assert len(first) == len(again) == 100
    assert all(again[key] == shown[::-1] for key, shown in first.items())
