"""The data contract: raw column names, canonical names, and the meaning of an answer code.

Raw names exist only here. Past `data/ingest.py`, all speak of user, question, test, correct, timestamp, concepts.
"""

from typing import Final

# canonical name -> raw column of the six-column competition schema
RAW_COLUMNS: Final[dict[str, str]] = {
    "user": "userID",
    "question": "assessmentItemID",
    "test": "testId",
    "correct": "answerCode",
    "timestamp": "Timestamp",
    "concepts": "KnowledgeTag",
}
REQUIRED: Final = ("user", "question", "correct")
OPTIONAL: Final = ("test", "timestamp", "concepts")

RIGHT: Final = 1
WRONG: Final = 0
UNKNOWN: Final = -1  # a hidden answer, to be predicted

CONCEPT_SEPARATOR: Final = "_"
