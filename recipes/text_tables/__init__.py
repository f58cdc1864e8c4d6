"""The tables of measurements in the text: functions that make them of the CSV files in results/."""

from . import claims, dnas, front, hand_made, in_c, log, networks, oqat, qfa, robustness, speed
from .cells import Table

TABLES: dict[str, Table] = {
    table.__name__: table
    for table in (
        claims.all_claims,
        front.what_came_out,
        networks.digits_oqat_most_accurate,
        networks.digits_qfa_networks,
        networks.digits_families,
        networks.digits_muon,
        networks.digits_steps,
        networks.cifar10_oqat_networks,
        networks.cifar10_oqat_default,
        networks.cifar10_oqat_hours,
        networks.cifar10_qfa_networks,
        oqat.digits_oqat_options,
        oqat.digits_oqat_claims,
        oqat.digits_oqat_processes,
        oqat.digits_imbalanced,
        oqat.cifar10_oqat_claims,
        oqat.cifar10_oqat_searchers,
        oqat.cifar10_oqat_c4,
        oqat.cifar10_init,
        oqat.oqat_precision,
        hand_made.cifar10_hand_made,
        hand_made.cifar10_hand_made_bytes,
        qfa.digits_qfa_quantizers,
        qfa.digits_qfa_uniform,
        qfa.digits_qfa_stabilisers,
        qfa.digits_qfa_predictor,
        qfa.cifar10_qfa_quantizers,
        qfa.cifar10_qfa_uniform,
        qfa.cifar10_qfa_stabilisers,
        qfa.cifar10_qfa_predictor,
        qfa.qfa_layers,
        dnas.cifar10_dnas_bytes,
        dnas.cifar10_dnas_bitops,
        dnas.dnas_claim_c7,
        speed.step,
        speed.step_tuned,
        speed.step_qfa_tuned,
        speed.step_xeon,
        speed.profile,
        in_c.cifar10_cortex_m4,
        in_c.digits_c_backends,
        in_c.c_vnni,
        in_c.c_avx2,
        robustness.own_networks,
        robustness.field_layouts,
        robustness.faults,
        log.narrow_subnets,
        log.simplifiers,
    )
}
"""By the name that stands in the text's markers: the function's."""
