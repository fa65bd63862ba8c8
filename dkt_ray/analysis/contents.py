"""The table of contents of the data report; to add a section, write its maker and add its entry."""

from __future__ import annotations

from typing import Final, NamedTuple

from dkt_ray.analysis import behaviour, overview, relations
from dkt_ray.analysis.section import Maker


class Entry(NamedTuple):
    """A section: its title, what it says, and the function that makes it."""

    title: str
    says: str
    make: Maker


SECTIONS: Final[dict[str, Entry]] = {
    "distributions": Entry(
        "Distributions",
        """How much there is, and how answers and accuracy spread over users, questions, tests and tags. Every figure of
        this page is of training users; a hidden answer enters no mean. std is the sample standard deviation, quartiles
        are interpolated.""",
        overview.summary,
    ),
    "structure": Entry(
        "Structure",
        """What is made of what. Head, mid and tail are the parts of a question's id; a tail is the question's number in
        its test.""",
        overview.structure,
    ),
    "accuracy": Entry(
        "Accuracy",
        """The share of right answers by head, mid, tail and hour. These are averages of who happened to be there, not
        effects: strong students pick hard tests. The hour is that of UTC.""",
        behaviour.rates,
    ),
    "months": Entry(
        "Months",
        "Answers per calendar month (UTC) and head: seasons, and heads that begin or stop.",
        behaviour.months,
    ),
    "features": Entry(
        "Features and the last answer",
        """Thirteen features of a user, computed from the rows before the last one only, against the accuracy in these
        rows and against the last answer, which they have not seen. A cycle is one day (UTC) of a user in one test. The
        interval is Fisher's, 95 %; a correlation with a yes-or-no answer is small even where a feature is useful.""",
        overview.correlation,
    ),
    "concepts": Entry(
        "Concepts: which comes before which",
        """R(A, B): of the users who were right on A and tried B, the share that was right on B; right on a concept is
        at least one right answer on it. R is directed: far above R(B, A) it says that who masters A also masters B,
        but not the other way, as with an easy B below a hard A. Base is the same share among all who tried both, lift
        is R minus base: what being right on A adds. Joint is the share of users that was both right and wrong on both.
        low and high: 95 % Wilson interval. This is association between users, not proof of an order of learning.""",
        relations.concepts,
    ),
    "exposure": Entry(
        "Exposure",
        """Number of answers against accuracy over users, tags and tests: every unit (raw), units of an equal count
        averaged (per count), and bins of equal width (binned: 300, 150 and 200). Averaging removes noise, so r grows
        from raw to binned; only the raw one is a correlation of units. A few very large units can carry it.""",
        behaviour.exposures,
    ),
    "learning": Entry(
        "Learning curves",
        """How accuracy moves along a history. Long histories belong to other users than short ones, so the curve over
        all users mixes learning with who stays; tests also get harder. A user's own curve mixes only the latter.""",
        behaviour.learning,
    ),
    "elapsed": Entry(
        "Elapsed time",
        """Whole seconds since the user's previous row against the answer. A user's first row has no duration. Whether
        the duration is known before the answer depends on what a timestamp means (shown or submitted).""",
        behaviour.pace,
    ),
    "order": Entry(
        "Order and repeats",
        """Transitions between consecutive rows of one user in one test that do not go to the next tail, and answers to
        a question that the user had met before.""",
        behaviour.order,
    ),
    "drift": Entry(
        "Training and test users",
        """Do the users to be predicted look like those that train? Test users wait in the vault: only their inputs
        (lengths, questions, tests, times) are compared, never their answers. KS distance: largest gap between two
        distribution functions over users; stability index: sum (p - q) ln (p / q) over shares of rows, below 0.1 is
        little, above 0.25 is much. Two random groups of n and m users differ by a KS distance of up to about
        1.36 sqrt(1/n + 1/m).""",
        relations.shift,
    ),
    "map": Entry(
        "Map of histories",
        """Every user as a vector of habits (accuracy lately and in all, number of answers, tempo, share of each head)
        from the rows before the last one, drawn in two dimensions. If the last answer's colours mix, as they do in most
        logs, habits alone do not give it away. Distances between far groups in a t-SNE mean nothing; its axes have no
        unit.""",
        relations.map_of_histories,
    ),
}
