/* server/metrics.c: see metrics.h. */
#include "server/metrics.h"

#include <stdlib.h>
#include <string.h>

enum { COUNTER, HISTOGRAM };

static const struct {
    int kind;
    const char *name, *labels, *help;
} families[] = {
#define METRIC_ROW(constant, kind, name, labels, help) {kind, name, labels, help},
    METRIC_MAP(METRIC_ROW)
#undef METRIC_ROW
};

/* Seconds; from a token's time to a long answer's. */
static const double bounds[METRICS_N_BOUNDS] = {
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 60, 120, 300};

typedef struct series {
    double value; /* of a counter */
    metrics_samples samples;
} series;

void metrics_init(metrics *m)
{
    for (int i = 0; i < METRIC_COUNT; i++)
        map_init(&m->series[i]);
}

void metrics_release(metrics *m)
{
    for (int i = 0; i < METRIC_COUNT; i++) {
        size_t position = 0;
        for (const map_slot *slot; (slot = map_next(&m->series[i], &position));)
            free(slot->value);
        map_release(&m->series[i]);
    }
}

void metrics_write_escaped(buffer *out, const char *text)
{
    for (; *text; text++) {
        if (*text == '\n')
            buffer_add(out, "\\n", 2);
        else if (*text == '\\' || *text == '"')
            buffer_printf(out, "\\%c", *text);
        else
            buffer_add(out, text, 1);
    }
}

/* The labels as they will be printed are the key. */
static void write_labels(buffer *out, metric family, const char *const *values)
{
    const char *label = families[family].labels;
    for (int i = 0; *label; i++) {
        size_t size = strcspn(label, ",");
        const char *value = values ? values[i] : "other";
        buffer_printf(out, "%s%.*s=\"", i ? "," : "", (int)size, label);
        metrics_write_escaped(out, value && *value ? value : "none");
        buffer_add(out, "\"", 1);
        label += size + (label[size] == ',');
    }
}

static series *find(metrics *m, metric family, const char *const *values)
{
    buffer key;
    buffer_init(&key, 4096);
    write_labels(&key, family, values);
    map *all = &m->series[family];
    series *found = key.size ? map_get(all, key.data, key.size) : NULL;
    size_t most = families[family].kind == HISTOGRAM ? METRICS_MAX_HISTOGRAMS : METRICS_MAX_SERIES;
    if (!found && values && all->count >= most) {
        buffer_release(&key);
        return find(m, family, NULL);
    }
    if (!found && (found = calloc(1, sizeof *found)) &&
        map_put(all, buffer_text(&key), key.size, found, NULL)) {
        free(found);
        found = NULL;
    }
    buffer_release(&key);
    return found;
}

void metrics_add(metrics *m, metric family, double amount, const char *const *values)
{
    series *s = find(m, family, values);
    if (s)
        s->value += amount;
}

void metrics_samples_add(metrics_samples *s, double seconds)
{
    int i = 0;
    while (i < METRICS_N_BOUNDS && seconds > bounds[i])
        i++;
    s->count[i]++;
    s->sum += seconds;
}

void metrics_observe(metrics *m, metric family, double seconds, const char *const *values)
{
    series *s = find(m, family, values);
    if (s)
        metrics_samples_add(&s->samples, seconds);
}

void metrics_merge(metrics *m, metric family, const metrics_samples *samples,
                   const char *const *values)
{
    series *s = find(m, family, values);
    for (int i = 0; s && i <= METRICS_N_BOUNDS; i++)
        s->samples.count[i] += samples->count[i];
    if (s)
        s->samples.sum += samples->sum;
}

void metrics_write_head(buffer *out, const char *name, const char *kind, const char *help)
{
    buffer_printf(out, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, kind);
}

void metrics_write_value(buffer *out, const char *name, const char *labels, double value)
{
    if (*labels)
        buffer_printf(out, "%s{%s} %.17g\n", name, labels, value);
    else
        buffer_printf(out, "%s %.17g\n", name, value);
}

static void write_histogram(buffer *out, const char *name, const map_slot *slot)
{
    const metrics_samples *s = &((const series *)slot->value)->samples;
    int size = (int)slot->key_size;
    uint64_t count = 0;
    for (int i = 0; i < METRICS_N_BOUNDS; i++)
        buffer_printf(out, "%s_bucket{%.*s,le=\"%g\"} %" PRIu64 "\n", name, size, slot->key,
                      bounds[i], count += s->count[i]);
    count += s->count[METRICS_N_BOUNDS];
    buffer_printf(out, "%s_bucket{%.*s,le=\"+Inf\"} %" PRIu64 "\n", name, size, slot->key, count);
    buffer_printf(out, "%s_sum{%.*s} %.9g\n", name, size, slot->key, s->sum);
    buffer_printf(out, "%s_count{%.*s} %" PRIu64 "\n", name, size, slot->key, count);
}

void metrics_write(const metrics *m, buffer *out)
{
    for (int i = 0; i < METRIC_COUNT; i++) {
        int is_histogram = families[i].kind == HISTOGRAM;
        metrics_write_head(out, families[i].name, is_histogram ? "histogram" : "counter",
                           families[i].help);
        size_t position = 0;
        for (const map_slot *slot; (slot = map_next(&m->series[i], &position));) {
            if (is_histogram)
                write_histogram(out, families[i].name, slot);
            else
                buffer_printf(out, "%s{%.*s} %.17g\n", families[i].name, (int)slot->key_size,
                              slot->key, ((series *)slot->value)->value);
        }
    }
}
