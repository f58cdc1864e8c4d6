"""Quantizers of weights and of layers' inputs; `quantizer.Quantizer` is what they have in common.

A new one is a module here and a line in a dictionary below. tests/test_quantizer_contract.py finds it there.
"""

from oncequant.quantizers.batchquant import BatchQuant
from oncequant.quantizers.dorefa import DoReFa
from oncequant.quantizers.lsq import LSQ
from oncequant.quantizers.lsq_channel import ChannelLSQ
from oncequant.quantizers.lsq_power_of_two import PowerOfTwoLSQ
from oncequant.quantizers.pact import PACT
from oncequant.quantizers.quantizer import Quantizer
from oncequant.quantizers.running import RunningRange

WEIGHT_QUANTIZERS: dict[str, type[Quantizer]] = {"lsq": LSQ, "lsq-channel": ChannelLSQ, "dorefa": DoReFa}
INPUT_QUANTIZERS: dict[str, type[Quantizer]] = {
    "lsq": LSQ,
    "batchquant": BatchQuant,
    "lsq-power-of-two": PowerOfTwoLSQ,
    "running": RunningRange,
    "pact": PACT,
}
