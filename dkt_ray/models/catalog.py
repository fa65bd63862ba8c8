"""The table of model families; to add one, write its file and add its line."""

from __future__ import annotations

from typing import Final

from dkt_ray.models import akt, bert, last_query, lgbm, lstm, lstm_attention, saint
from dkt_ray.models.base import ModelSpec
from dkt_ray.models.optimization import FOLLOWS

CATALOG: Final[dict[str, ModelSpec]] = {
    "lightgbm": ModelSpec("table", lgbm.LightGBMConfig, lgbm.LightGBM, lgbm.SPACE),
    "lstm": ModelSpec("sequence", lstm.LstmConfig, lstm.Lstm, lstm.SPACE, FOLLOWS),
    "lstm_attention": ModelSpec(
        "sequence", lstm_attention.LstmAttentionConfig, lstm_attention.LstmAttention, lstm_attention.SPACE, FOLLOWS
    ),
    "bert": ModelSpec("sequence", bert.BertConfig, bert.Bert, bert.SPACE, (*FOLLOWS, "attention_dropout")),
    "saint": ModelSpec("sequence", saint.SaintConfig, saint.Saint, saint.SPACE, (*FOLLOWS, "attention_dropout")),
    "akt": ModelSpec("sequence", akt.AktConfig, akt.Akt, akt.SPACE, (*FOLLOWS, "attention_dropout")),
    "last_query": ModelSpec("sequence", last_query.LastQueryConfig, last_query.LastQuery, last_query.SPACE, FOLLOWS),
}
