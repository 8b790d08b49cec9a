/* engine/pace.h: how many rows of prompts an iteration takes beside sessions that stream.
 *
 * What a stream's reader sees is the gap between two tokens, which is the iteration's time. The
 * rows of a prompt make it longer; with as many as take PACE_SHARE of the time of an iteration
 * without any, a gap is meant to stay below twice the usual one.
 *
 * In a crowd that rule is bad for everybody: many prompts would wait while a few streams hurry along,
 * in batches so small that the reading of the weights is most of their time. So where more than half
 * as many sessions wait as stream, and at least two, an iteration may take PACE_CROWD times what it
 * takes when all of them stream, which is the gap that these clients would give each other anyway.
 *
 * Everything is measured as the engine runs, so the same rule holds on any machine and model:
 *
 *   - the time of an iteration without prompts, for each number of streams. One that has not been
 *     seen, or not for long, is measured by leaving the prompts out once
 *   - what a prompt's row adds: a part that is always the same and a part that grows with its
 *     position, since attention reads all rows before it. The second is the slope of a line
 *     through the last dozens of iterations, the first follows the last few
 *   - on devices that compute rows in whole tiles, the time of an iteration that ends in each tile. There a
 *     prompt gets the largest tile with which a gap is known to stay about twice the usual one or below: that twice
 *     the rows may take hardly longer is no news that a line could tell. What a tile takes beside streams
 *     is guessed from a prompt that ended in it alone, until prompts have filled it beside them: what disturbs one
 *     of these does not speak against the tile
 *
 * What disturbs an iteration (another process, the host) makes it longer, never shorter, and the
 * fewer its rows the more it seems to make of them. So all estimates fall faster than they rise, and
 * iterations with many rows count for more: a prompt does not pay for what others take from the
 * cores with rows that are ever fewer and so seem ever dearer.
 *
 * Results do not depend on it: rows are computed to the same bits however a prompt is cut. Pure
 * arithmetic, no clock. Engine thread. */
#ifndef REALM_ENGINE_PACE_H
#define REALM_ENGINE_PACE_H

#include <stdint.h>

#define PACE_SHARE   0.5
#define PACE_CROWD   3.0
#define PACE_STREAMS 256 /* more count as so many */
#define PACE_TILES   16  /* of a device; those beyond count for nothing */

/* Iterations whose last row is in the tile that ends with row end. */
typedef struct pace_tile {
    int32_t end;
    double alone_ns;     /* the least, of prompts without streams; 0: not seen yet */
    double beside_ns[2]; /* beside streams, the last time and the one before; 0: not seen yet */
    uint64_t beside_at;  /* iteration of the last measurement */
} pace_tile;

typedef struct pace {
    double step_ns[PACE_STREAMS + 1];   /* by streams, smoothed; 0: not seen yet */
    uint64_t step_at[PACE_STREAMS + 1]; /* iteration of the last measurement */
    uint64_t any_step_at;
    uint64_t iteration, probed_at;
    int probing; /* the plan that is being made leaves prompts out */

    /* a row's time over its position; sums that forget */
    double n, x, y, xx, xy;
    double row_ns;      /* at position 0; 0: not seen yet */
    double position_ns; /* what each position adds */
    pace_tile tiles[PACE_TILES];
    int32_t n_tiles;
    int mixed;      /* the times above come from iterations with streams */
    double kept_ns; /* what the last plan left of its room: less than a row */
} pace;

/* An iteration as it was. */
typedef struct pace_load {
    int32_t n_streams, n_prompt_rows;
    double positions; /* sum over the prompts' rows */
    int32_t tile;     /* where the tile of its last row ends; 0: the device has none */
} pace_load;

/* What prompts may take: a row at position p uses up 1 + p * position_cost of rows. */
typedef struct pace_room {
    double rows, position_cost;
    int32_t least; /* rows that are taken in any case, or a prompt would never end */
    int32_t most;  /* rows, whatever they cost; INT32_MAX: as many as there can be */
} pace_room;

void pace_note(pace *p, uint64_t ns, const pace_load *load);
/* Beside n_streams >= 1 of them, with so many sessions whose prompts wait. None where the iteration
 * serves to measure. */
pace_room pace_plan(pace *p, int32_t n_streams, int32_t n_waiting);

/* The most rows, n_rows or more, that a step of n_rows takes hardly longer with, on a device that computes a step in
 * whole tiles of rows, so that time grows by jumps. */
typedef int32_t (*pace_filled)(const void *context, int32_t n_rows);

/* Fits the room beside n_streams rows to a tile's end: the one nearest to what the room is thought to hold, or the last
 * one that is known to stretch no gap too far if that holds more. */
void pace_fill(const pace *p, pace_room *room, int32_t n_streams, pace_filled filled,
               const void *context);

/* What a plan could not use, as rows are whole: the next one gets it. Without, a room of 1.9 rows
 * would be one row for ever, and that two cost hardly more would never be seen. */
void pace_keep(pace *p, const pace_room *left);

/* How many rows from position first on fit into room, at most most. */
int32_t pace_fit(const pace_room *room, int32_t first, int32_t most);
/* What they use up of it. */
double pace_cost(const pace_room *room, int32_t first, int32_t count);

#endif
