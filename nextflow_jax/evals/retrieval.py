"""Does a generated picture show what was asked? Its nearest neighbours among known pictures tell.

A picture is found when no candidate is nearer than the wanted one. Candidates as near as it (twins that cannot be told
apart: several OpenMoji pictures are pixel-identical) do not make an answer wrong, so distances are exact: sums of
squared differences of bytes, computed in float64, in which every such sum is an integer without rounding.
"""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8


def squared_distances(
    queries: UInt8[np.ndarray, "Q height width 3"], candidates: UInt8[np.ndarray, "R height width 3"]
) -> Float[np.ndarray, "Q R"]:
    """Sum over pixels and channels of squared byte differences, exact."""
    pixels = math.prod(candidates.shape[1:])
    q_QP = queries.reshape(len(queries), pixels).astype(np.float64)
    c_RP = candidates.reshape(len(candidates), pixels).astype(np.float64)
    return (q_QP**2).sum(1)[:, None] + (c_RP**2).sum(1)[None] - 2 * q_QP @ c_RP.T


def found(distances: Float[np.ndarray, "Q R"], wanted: Int[np.ndarray, "Q"]) -> Bool[np.ndarray, "Q"]:
    """Whether candidate `wanted[q]` is a nearest one of query q; the mean is retrieval@1."""
    return distances[np.arange(len(wanted)), wanted] <= distances.min(axis=1, initial=np.inf)


def chance_found(candidates: UInt8[np.ndarray, "R height width 3"], wanted: Int[np.ndarray, "Q"]) -> float:
    """Mean retrieval@1 of answering with a random candidate: the share of candidates identical to the wanted one."""
    flat_RP = candidates.reshape(len(candidates), -1)
    _, kind_R, size = np.unique(flat_RP, axis=0, return_inverse=True, return_counts=True)
    return float(np.mean(size[kind_R.reshape(-1)][wanted]) / len(candidates)) if len(wanted) else 0.0


def right_group(
    distances: Float[np.ndarray, "Q R"], groups: Sequence[str], wanted: Int[np.ndarray, "Q"]
) -> Bool[np.ndarray, "Q"]:
    """Whether a nearest candidate of each query shares the wanted candidate's group, e.g. its base emoji."""
    groups_R = np.asarray(groups)
    nearest_QR = distances <= distances.min(axis=1, initial=np.inf)[:, None]
    return np.any(nearest_QR & (groups_R[None] == groups_R[wanted][:, None]), axis=1)


def chance_group(groups: Sequence[str], wanted: Int[np.ndarray, "Q"]) -> float:
    """Mean `right_group` of answering with a random candidate."""
    groups_R = np.asarray(groups)
    return float(np.mean([np.mean(groups_R == groups_R[target]) for target in wanted])) if len(wanted) else 0.0


def found_within_group(
    distances: Float[np.ndarray, "Q R"], groups: Sequence[str], wanted: Int[np.ndarray, "Q"]
) -> Bool[np.ndarray, "Q"]:
    """`found`, with only the candidates of the wanted one's group to choose from: is the variant right?"""
    groups_R = np.asarray(groups)
    outside_QR = groups_R[None] != groups_R[wanted][:, None]
    return found(np.where(outside_QR, np.inf, distances), wanted)


def chance_within_group(groups: Sequence[str], wanted: Int[np.ndarray, "Q"]) -> float:
    """Mean `found_within_group` of answering with a random candidate of the wanted one's group."""
    groups_R = np.asarray(groups)
    return float(np.mean([1 / np.sum(groups_R == groups_R[target]) for target in wanted])) if len(wanted) else 0.0
