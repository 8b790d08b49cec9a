/* engine/pace.c: see pace.h. */
#include "engine/pace.h"

#define SHARE_OF_STEP 0.8
#define SMOOTHING     0.2 /* about the last five iterations count */
#define LEAST_ROWS    16  /* what rides along almost free where a step is bound by memory */
#define FIRST_ROWS    64  /* until both times are known */

static void smooth(double *value, double sample)
{
    *value = *value > 0 ? *value + SMOOTHING * (sample - *value) : sample;
}

void pace_note(pace *p, uint64_t ns, int32_t n_rows, int32_t n_prompt_rows)
{
    double step = n_rows > n_prompt_rows ? p->step_ns : 0;
    if (n_prompt_rows == 0)
        smooth(&p->step_ns, (double)ns);
    else if ((double)ns > step)
        smooth(&p->row_ns, ((double)ns - step) / n_prompt_rows);
}

int32_t pace_prompt_rows(const pace *p, int32_t rows)
{
    double count = p->step_ns > 0 && p->row_ns > 0 ? SHARE_OF_STEP * p->step_ns / p->row_ns
                                                   : FIRST_ROWS;
    if (count < LEAST_ROWS)
        count = LEAST_ROWS;
    return count < rows ? (int32_t)count : rows;
}
