// Loops over rows of `channels` numbers, channels last, in vectors of LANES numbers, whatever the number of channels.
//
// After `repeats` rows, a group of `period` numbers, the channels come at the same places of the vectors again. What
// belongs to a channel is repeated so often (`repeat`), and sums are of places in a group until they are `fold`ed. Rows
// behind the last whole group are computed in shorter vectors, with the same functions.
// Rows are cut into pieces that depend on their number alone, and the sums of the pieces are added in order, so that
// nothing depends on the number of threads.

#include <stdlib.h>

#include "grid.h"

#define MAX_PIECES 32
#define CHUNK 64  // groups that are summed in single precision

typedef struct {
    long rows, channels, repeats, period;
    long pieces, each;  // rows of a piece, whole groups
} Rows;

static Rows rows_of(long rows, long channels)
{
    long repeats = LANES;
    while (repeats > 1 && channels * (repeats / 2) % LANES == 0) repeats /= 2;
    long chunks = (rows + CHUNK - 1) / CHUNK, each = (chunks + MAX_PIECES - 1) / MAX_PIECES;
    return (Rows){rows, channels, repeats, repeats * channels, (chunks + each - 1) / each, each * CHUNK};
}

typedef struct {
    long begin, end;  // groups
    long rest;        // numbers behind the last of them
} Piece;

INLINE Piece piece_of(Rows rows, long piece)
{
    long begin = piece * rows.each, end = shorter(begin + rows.each, rows.rows);
    return (Piece){begin / rows.repeats, end / rows.repeats, end % rows.repeats * rows.channels};
}

// Numbers of the channels, (lines, channels), for every place of a group: (lines, period).
static void repeat(float *places, const float *of_channels, long lines, Rows rows)
{
    for (long line = 0; line < lines; line++)
        for (long i = 0; i < rows.period; i++)
            places[line * rows.period + i] = of_channels[line * rows.channels + i % rows.channels];
}

// Sums (pieces, lines, period) added for each channel: (lines, channels).
static void fold(double *of_channels, const double *sums, long lines, Rows rows)
{
    for (long line = 0; line < lines; line++)
        for (long c = 0; c < rows.channels; c++) {
            double sum = 0;
            for (long piece = 0; piece < rows.pieces; piece++)
                for (long i = c; i < rows.period; i += rows.channels)
                    sum += sums[(piece * lines + line) * rows.period + i];
            of_channels[line * rows.channels + c] = sum;
        }
}
