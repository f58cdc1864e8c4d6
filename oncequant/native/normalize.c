// Statistics of training batch norm, channels last.

#include <float.h>
#include <stdlib.h>

#include "rows.h"

typedef struct {
    Floats sum, square, low, high;
} Sums;

INLINE void add(Sums *sums, const void *z, long i, const float *about, long lanes, int is_bf16, int with_extremes)
{
    Floats v = load_lanes(z, i, lanes, is_bf16), d = v - load_lanes(about, 0, lanes, 0);
    sums->sum += d;
    sums->square += d * d;
    if (with_extremes) {
        sums->low = choose(v < sums->low, v, sums->low);
        sums->high = choose(v > sums->high, v, sums->high);
    }
}

// The sums and extremes of some lanes put to those of a piece at place p: totals (2, period), low and high (period).
INLINE void put(const Sums *sums, double *totals, float *low, float *high, long p, long period, long lanes)
{
    for (long l = 0; l < lanes; l++) totals[p + l] += sums->sum[l], totals[period + p + l] += sums->square[l];
    store_lanes(low, p, sums->low, lanes, 0);
    store_lanes(high, p, sums->high, lanes, 0);
}

INLINE void sums_of_piece(const void *z, Piece piece, long period, const float *about, double *totals, float *low,
                          float *high, int is_bf16, int with_extremes)
{
    for (long start = piece.begin; start < piece.end; start += CHUNK)
        for (long p = 0; p < period; p += LANES) {
            Sums sums = {{0}, {0}, load_lanes(low, p, LANES, 0), load_lanes(high, p, LANES, 0)};
            for (long group = start; group < shorter(start + CHUNK, piece.end); group++)
                add(&sums, z, group * period + p, about + p, LANES, is_bf16, with_extremes);
            put(&sums, totals, low, high, p, period, LANES);
        }
    for (long p = 0; p < piece.rest; p += LANES) {
        long lanes = shorter(LANES, piece.rest - p);
        Sums sums = {{0}, {0}, load_lanes(low, p, lanes, 0), load_lanes(high, p, lanes, 0)};
        add(&sums, z, piece.end * period + p, about + p, lanes, is_bf16, with_extremes);
        put(&sums, totals, low, high, p, period, lanes);
    }
}

// z holds `count` rows (batch and positions), at least one, of `channels` numbers. `statistics` becomes (4, channels):
// mean, inverse_std = 1 / sqrt(variance + eps), scale and shift, so that batch norm is z scale + shift; or (6, channels)
// with the least and the greatest z of each channel. Returns 0 without memory.
int batch_norm_statistics(const void *z, int is_bf16, long count, long channels, const float *weight,
                          const float *bias, float eps, float *statistics, int with_extremes)
{
    float *mean = statistics, *inverse_std = mean + channels;
    float *scale = inverse_std + channels, *shift = scale + channels;
    Rows rows = rows_of(count, channels);
    long period = rows.period;
    double *sums = calloc(rows.pieces * 2 * period + 2 * channels, sizeof(double));
    float *about = calloc(channels + period, sizeof(float));
    float *extremes = malloc(rows.pieces * 2 * period * sizeof(float));
    if (!sums || !about || !extremes) return free(sums), free(about), free(extremes), 0;
    double *total = sums + rows.pieces * 2 * period;
    long some = shorter(64, count);  // squares would cancel, if not about the mean of some rows
    for (long row = 0; row < some; row++)
        for (long c = 0; c < channels; c++) about[c] += load(z, row * channels + c, is_bf16) / some;
    repeat(about + channels, about, 1, rows);
#pragma omp parallel for schedule(static) if (count * channels >= PARALLEL_FROM)
    for (long p = 0; p < rows.pieces; p++) {
        const float *places = about + channels;
        float *low = extremes + p * 2 * period, *high = low + period;
        double *mine = sums + p * 2 * period;
        for (long i = 0; i < period; i++) low[i] = FLT_MAX, high[i] = -FLT_MAX;
        Piece piece = piece_of(rows, p);
        if (is_bf16 && with_extremes) sums_of_piece(z, piece, period, places, mine, low, high, 1, 1);
        else if (is_bf16) sums_of_piece(z, piece, period, places, mine, low, high, 1, 0);
        else if (with_extremes) sums_of_piece(z, piece, period, places, mine, low, high, 0, 1);
        else sums_of_piece(z, piece, period, places, mine, low, high, 0, 0);
    }
    fold(total, sums, 2, rows);
    for (long c = 0; c < channels; c++) {
        double off = total[c] / count, variance = total[channels + c] / count - off * off;
        mean[c] = (float)(about[c] + off);
        inverse_std[c] = (float)(1 / sqrt((variance > 0 ? variance : 0) + eps));
        scale[c] = weight[c] * inverse_std[c];
        shift[c] = bias[c] - mean[c] * scale[c];
    }
    if (with_extremes) {
        float *low = shift + channels, *high = low + channels;
        for (long c = 0; c < channels; c++) low[c] = FLT_MAX, high[c] = -FLT_MAX;
        for (long p = 0; p < rows.pieces; p++)
            for (long i = 0; i < period; i++) {
                const float *theirs = extremes + p * 2 * period;
                long c = i % channels;
                low[c] = theirs[i] < low[c] ? theirs[i] : low[c];
                high[c] = theirs[period + i] > high[c] ? theirs[period + i] : high[c];
            }
    }
    return free(sums), free(about), free(extremes), 1;
}
