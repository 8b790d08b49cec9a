/* engine/pace.c: see pace.h. */
#include "engine/pace.h"

#include <math.h>

#define SMOOTHING_UP   0.1 /* settles where one iteration of five is faster */
#define SMOOTHING_DOWN 0.4
#define SMOOTHING_OLD  0.5  /* up, of a time that is measured anew */
#define SLOPE_MEMORY   0.98 /* about the last fifty */
#define MOST_KEPT      0.5  /* of a room: PACE_SHARE times 1.5 is still well below 1 */
#define LEAST_ROWS     1
#define FIRST_ROWS     16   /* until something is known */
#define STALE          32   /* iterations after which a time is measured anew: streams grow */
#define MOST_GROWTH    1.25 /* in between; more is the machine's doing */
#define PROBE_EVERY    8    /* iterations: that many streams come and go may not stop a prompt */
#define OUTLIER        2.0 /* what takes longer than so often the expected is the machine's doing */
#define LEAST_SPREAD   64.0 /* positions, standard deviation, below which a slope is mere noise */
#define LEAST_ADDED    0.02 /* of an iteration: rows that seem to cost nothing are noise too */
#define LEAST_SHARE    0.1  /* of the mean: a row at position 0 is never thought to be cheaper */
#define MOST_WEIGHT    64   /* rows: beyond, an iteration's time is as good as it gets */
#define CROWD_SHARE    0.5  /* of the streams: more prompts than so many are a crowd */
#define LEAST_CROWD    2
/* Of the usual: a step of a tile that a prompt may fill. A little above twice, as with the tile below a prompt would wait
 * twice as long. */
#define TILE_GAP     2.1
#define TILE_STREAMS 0.15 /* of a step: what streams are thought to add to a tile */
#define TILE_STALE   1024 /* iterations after which a tile that was too slow is tried again */

/* Falls faster than it rises: what disturbs a measurement makes it longer, never shorter. */
static void smooth(double *value, double sample, double share_up, double outlier)
{
    if (*value > 0 && sample > outlier * *value)
        sample = outlier * *value;
    double share = sample < *value ? SMOOTHING_DOWN : share_up;
    *value = *value > 0 ? *value + share * (sample - *value) : sample;
}

/* A time of long ago is that of shorter streams: what has come since counts for more, though no more
 * than streams grow. Otherwise the rows of prompts would be charged for it. */
static void note_step(pace *p, int32_t n_streams, double ns)
{
    int is_old = p->iteration - p->step_at[n_streams] >= STALE;
    smooth(&p->step_ns[n_streams], ns, is_old ? SMOOTHING_OLD : SMOOTHING_UP,
           is_old ? MOST_GROWTH : OUTLIER);
    p->step_at[n_streams] = p->any_step_at = p->iteration;
}

static int32_t bounded(int32_t n_streams)
{
    return n_streams < PACE_STREAMS ? n_streams : PACE_STREAMS;
}

/* 0: nothing is known. From fewer streams their time and what rows at position 0 add, from more
 * their time a stream: both are no more than what the iteration will take. */
static double expected_step(const pace *p, int32_t n_streams)
{
    for (int32_t n = n_streams; n > 0; n--)
        if (p->step_ns[n] > 0)
            return p->step_ns[n] + (n_streams - n) * p->row_ns;
    for (int32_t n = n_streams + 1; n <= PACE_STREAMS; n++)
        if (p->step_ns[n] > 0)
            return p->step_ns[n] * n_streams / n;
    return 0;
}

/* Weighted least squares with forgetting. */
static double note_slope(pace *p, double position, double row_ns, double weight)
{
    p->n = p->n * SLOPE_MEMORY + weight;
    p->x = p->x * SLOPE_MEMORY + weight * position;
    p->y = p->y * SLOPE_MEMORY + weight * row_ns;
    p->xx = p->xx * SLOPE_MEMORY + weight * position * position;
    p->xy = p->xy * SLOPE_MEMORY + weight * position * row_ns;
    double spread = p->xx / p->n - p->x / p->n * (p->x / p->n);
    if (spread <= LEAST_SPREAD * LEAST_SPREAD)
        return p->position_ns;
    return fmax((p->xy / p->n - p->x / p->n * (p->y / p->n)) / spread, 0);
}

/* The level follows faster than the slope. */
static void note_rows(pace *p, double position, double row_ns, int32_t n_rows)
{
    double level = p->row_ns + p->position_ns * position;
    double doubt = row_ns > level && level > 0 ? SMOOTHING_UP / SMOOTHING_DOWN : 1;
    smooth(&level, row_ns, SMOOTHING_UP, OUTLIER);
    double slope = note_slope(p, position, doubt < 1 ? fmin(row_ns, OUTLIER * level) : row_ns,
                              doubt * fmin(n_rows, MOST_WEIGHT));
    /* The level is held where the rows are: a new slope turns the line about this point. */
    if (level - slope * position < LEAST_SHARE * level)
        slope = (1 - LEAST_SHARE) * level / position;
    p->position_ns = slope;
    p->row_ns = level - slope * position;
}

/* Among the tiles that are known; n_tiles: it is not. */
static int32_t find_tile(const pace *p, int32_t end)
{
    int32_t i = 0;
    while (i < p->n_tiles && p->tiles[i].end != end)
        i++;
    return i;
}

static void note_tile(pace *p, const pace_load *load, double ns)
{
    int32_t i = find_tile(p, load->tile);
    if (i == PACE_TILES)
        return;
    pace_tile *tile = &p->tiles[i];
    if (i == p->n_tiles)
        p->tiles[p->n_tiles++] = (pace_tile){.end = load->tile};
    if (load->n_streams > 0) {
        tile->beside_ns[1] = tile->beside_ns[0];
        tile->beside_ns[0] = ns;
        tile->beside_at = p->iteration;
    } else {
        tile->alone_ns = tile->alone_ns > 0 ? fmin(tile->alone_ns, ns) : ns;
    }
}

/* What a step that fills the tile takes beside streams; INFINITY: nothing is known. step: without the prompt. */
static double expected_tile(const pace *p, int32_t end, double step)
{
    int32_t i = find_tile(p, end);
    if (i == p->n_tiles)
        return INFINITY;
    const pace_tile *tile = &p->tiles[i];
    const double guess = tile->alone_ns > 0 ? tile->alone_ns + TILE_STREAMS * step : INFINITY;
    if (tile->beside_ns[0] <= 0 || p->iteration - tile->beside_at >= TILE_STALE)
        return guess;
    return fmin(tile->beside_ns[0], tile->beside_ns[1] > 0 ? tile->beside_ns[1] : guess);
}

void pace_note(pace *p, uint64_t ns, const pace_load *load)
{
    int32_t streams = bounded(load->n_streams);
    double time = (double)ns;
    p->iteration++;
    p->probing = 0;
    if (load->n_prompt_rows == 0) {
        note_step(p, streams, time);
        return;
    }
    if (load->tile > 0)
        note_tile(p, load, time);
    double step = streams > 0 ? expected_step(p, streams) : 0;
    if (streams == 0 && p->mixed) /* other sizes, other kernels: better than nothing alone */
        return;
    if (streams > 0 && step <= 0)
        return;
    double added = fmax(time - step, LEAST_ADDED * step);
    if (streams > 0 && !p->mixed) {
        p->mixed = 1;
        p->n = p->x = p->y = p->xx = p->xy = 0;
    }
    note_rows(p, load->positions / load->n_prompt_rows, added / load->n_prompt_rows,
              load->n_prompt_rows);
}

/* What a row costs at the mean of the positions seen lately: about what one of a stream does. */
static double usual_row(const pace *p)
{
    return p->row_ns + (p->n > 0 ? p->position_ns * p->x / p->n : 0);
}

static int is_crowded(int32_t n_streams, int32_t n_waiting)
{
    return n_waiting >= LEAST_CROWD && n_waiting > CROWD_SHARE * n_streams;
}

/* In a crowd the bound is loose enough for what other numbers of streams tell. */
static int wants_probe(const pace *p, int32_t n_streams, int crowded)
{
    uint64_t at = crowded ? p->any_step_at : p->step_at[n_streams];
    int is_known = expected_step(p, n_streams) > 0 && (crowded || p->step_ns[n_streams] > 0) &&
                   p->iteration - at < STALE;
    /* A probe of which no note came found nothing to run. */
    int is_due = p->probed_at == 0 || p->iteration - p->probed_at >= PROBE_EVERY;
    return !is_known && !p->probing && is_due;
}

pace_room pace_plan(pace *p, int32_t n_streams, int32_t n_waiting)
{
    n_streams = bounded(n_streams);
    int crowded = is_crowded(n_streams, n_waiting);
    if (wants_probe(p, n_streams, crowded)) {
        p->probing = 1;
        p->probed_at = p->iteration > 0 ? p->iteration : 1;
        return (pace_room){0, 0, 0, INT32_MAX};
    }
    double step = expected_step(p, n_streams);
    if (step <= 0 || p->row_ns <= 0)
        return (pace_room){FIRST_ROWS, 0, FIRST_ROWS, INT32_MAX};
    double room_ns = PACE_SHARE * step + fmin(p->kept_ns, MOST_KEPT * PACE_SHARE * step);
    if (!p->mixed) /* few rows cost more each than the many of a prompt alone */
        room_ns *= 0.5;
    if (crowded)
        room_ns = fmax(room_ns, PACE_CROWD * (step + n_waiting * usual_row(p)) - step);
    return (pace_room){room_ns / p->row_ns, p->position_ns / p->row_ns, LEAST_ROWS, INT32_MAX};
}

/* The last tile's end with which a step takes no longer than most_ns; 0: there is none that is known to. */
static int32_t last_tile(const pace *p, int32_t n_streams, double step, double most_ns,
                         pace_filled filled, const void *context)
{
    int32_t best = 0, end = n_streams;
    for (int i = 0; i < PACE_TILES; i++) {
        int32_t next = filled(context, end + 1);
        if (next <= end)
            break;
        end = next;
        if (expected_tile(p, end, step) <= most_ns)
            best = end;
    }
    return best;
}

void pace_fill(const pace *p, pace_room *room, int32_t n_streams, pace_filled filled,
               const void *context)
{
    double rows = room->rows;
    if (rows <= 0)
        return;
    double step = expected_step(p, bounded(n_streams > 0 ? n_streams : 1));
    double most_ns = fmax(TILE_GAP * step, step + rows * p->row_ns);
    int32_t known = last_tile(p, n_streams, step, most_ns, filled, context);
    if (p->row_ns > 0)
        rows *= p->row_ns / usual_row(p);
    double total = n_streams + rows;
    int32_t below = n_streams, above = filled(context, n_streams + 1);
    while (above < total && above > below) {
        below = above;
        above = filled(context, below + 1);
    }
    int32_t end = total - below < above - total && below > n_streams ? below : above;
    if (known >= end) {
        *room = (pace_room){known - n_streams, 0, 0, known - n_streams};
        return;
    }
    room->most = end - n_streams;
    if (end > total) /* the rest of the tile costs next to nothing */
        room->rows *= room->most / rows;
}

void pace_keep(pace *p, const pace_room *left)
{
    int is_kept = left->rows > 0 && left->most > 0;
    /* More than a row is left where the prompts came to their ends. */
    p->kept_ns = is_kept ? fmin(left->rows * p->row_ns, usual_row(p)) : 0;
}

double pace_cost(const pace_room *room, int32_t first, int32_t count)
{
    double positions = (double)count * first + 0.5 * (double)count * (count - 1);
    return count + room->position_cost * positions;
}

int32_t pace_fit(const pace_room *room, int32_t first, int32_t most)
{
    /* count + cost * (count * first + count * (count - 1) / 2) = rows, solved for count */
    double half = 0.5 * room->position_cost, linear = 1 + room->position_cost * first - half;
    double count = half > 0 ? (sqrt(linear * linear + 4 * half * room->rows) - linear) / (2 * half)
                            : room->rows;
    if (!(room->rows > 0))
        return 0;
    most = most < room->most ? most : room->most;
    return count < most ? (int32_t)count : most;
}
