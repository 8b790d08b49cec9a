/* fuzz_driver.c: runs a fuzz target where libFuzzer is not to be had (gcc, CI).
 *
 * Gives LLVMFuzzerTestOneInput every file of a corpus, then mutations of them until its time is up.
 * The seed is fixed, so a failure in CI fails again at home; the input that was running is kept in
 * <target>.input of the working folder, rewritten before each call, so that a crash leaves it behind.
 * It has no feedback from coverage: it finds what breaks on almost-valid input, which is most of what
 * parsers get wrong, and libFuzzer (-DREALM_LIBFUZZER=ON) finds the rest.
 *
 *   fuzz_<name> SECONDS [FILE|FOLDER...] */
#include <dirent.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Mutations grow an input no further than this; corpus files may be larger. */
#define MAX_GROWN_BYTES ((size_t)1 << 20)
#define MAX_SEEDS       4096

typedef struct input {
    uint8_t *bytes;
    size_t size;
} input;

static input seeds[MAX_SEEDS];
static size_t n_seeds;
static uint64_t random_state = 0x9e3779b97f4a7c15u;

/* xorshift64*, Vigna 2016 */
static uint64_t next_random(void)
{
    random_state ^= random_state >> 12;
    random_state ^= random_state << 25;
    random_state ^= random_state >> 27;
    return random_state * 0x2545f4914f6cdd1du;
}

static size_t below(size_t bound)
{
    return bound ? (size_t)(next_random() % bound) : 0;
}

static double seconds_now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static void add_seed(const char *path)
{
    FILE *file = fopen(path, "rb");
    if (!file || n_seeds == MAX_SEEDS) {
        fprintf(stderr, "fuzz: cannot use %s\n", path);
        exit(2);
    }
    fseek(file, 0, SEEK_END);
    long size = ftell(file);
    rewind(file);
    uint8_t *bytes = malloc((size_t)size + 1);
    if (!bytes || fread(bytes, 1, (size_t)size, file) != (size_t)size) {
        fprintf(stderr, "fuzz: cannot read %s\n", path);
        exit(2);
    }
    fclose(file);
    seeds[n_seeds++] = (input){bytes, (size_t)size};
}

static int by_name(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

/* Sorted, so that the same corpus gives the same run on every file system. */
static void add_folder(const char *path)
{
    DIR *folder = opendir(path);
    char *names[MAX_SEEDS];
    size_t count = 0;
    if (!folder) {
        fprintf(stderr, "fuzz: cannot open %s\n", path);
        exit(2);
    }
    for (struct dirent *entry; (entry = readdir(folder)) && count < MAX_SEEDS;) {
        if (entry->d_name[0] != '.') {
            names[count++] = strdup(entry->d_name);
        }
    }
    closedir(folder);
    qsort(names, count, sizeof *names, by_name);
    for (size_t i = 0; i < count; i++) {
        char full[4096];
        snprintf(full, sizeof full, "%s/%s", path, names[i]);
        add_seed(full);
        free(names[i]);
    }
}

/* One change in place; returns the new size. The numbers are the ones parsers get wrong: around
 * zero, around the ends of 8, 16, 32 and 64 bits. */
static size_t mutate(uint8_t *bytes, size_t size, size_t capacity)
{
    static const uint64_t edges[] = {0,
                                     1,
                                     2,
                                     0x7f,
                                     0x80,
                                     0xff,
                                     0x7fff,
                                     0x8000,
                                     0xffff,
                                     0x7fffffff,
                                     0x80000000u,
                                     0xffffffffu,
                                     0x7fffffffffffffffu,
                                     0x8000000000000000u,
                                     0xffffffffffffffffu,
                                     0x0000000100000000u};
    if (size == 0) {
        bytes[0] = (uint8_t)next_random();
        return 1;
    }
    size_t at = below(size);
    switch (below(7)) {
    case 0: /* flip a bit */ bytes[at] ^= (uint8_t)(1u << below(8)); return size;
    case 1: /* another byte */ bytes[at] = (uint8_t)next_random(); return size;
    case 2: { /* a number at an edge, little endian */
        uint64_t value = edges[below(sizeof edges / sizeof *edges)];
        size_t width = (size_t)1 << below(4);
        memcpy(bytes + at, &value, width < size - at ? width : size - at);
        return size;
    }
    case 3: /* cut the end off */ return at;
    case 4: { /* take a piece out */
        size_t length = 1 + below(size - at < 64 ? size - at : 64);
        length = length < size - at ? length : size - at;
        memmove(bytes + at, bytes + at + length, size - at - length);
        return size - length;
    }
    case 5: { /* repeat a piece */
        size_t length = 1 + below(size - at < 64 ? size - at : 64);
        length = length < size - at ? length : size - at;
        if (size + length > capacity) {
            return size;
        }
        memmove(bytes + at + length, bytes + at, size - at);
        return size + length;
    }
    default: { /* a piece of another seed over this one */
        const input *other = &seeds[below(n_seeds)];
        size_t from = below(other->size);
        size_t length = below(256);
        length = length < other->size - from ? length : other->size - from;
        length = length < size - at ? length : size - at;
        memcpy(bytes + at, other->bytes + from, length);
        return size;
    }
    }
}

/* A mapping over <target>.input: a store into it survives a crash and costs no system call. */
typedef struct keeper {
    uint64_t *size;
    uint8_t *bytes;
    size_t capacity;
} keeper;

static keeper keeper_open(const char *program, size_t capacity)
{
    char path[4096];
    snprintf(path, sizeof path, "%s.input", program);
    FILE *file = fopen(path, "w+b");
    keeper kept = {NULL, NULL, capacity};
    if (file && ftruncate(fileno(file), (off_t)(capacity + sizeof(uint64_t))) == 0) {
        void *map = mmap(NULL, capacity + sizeof(uint64_t), PROT_READ | PROT_WRITE, MAP_SHARED,
                         fileno(file), 0);
        if (map != MAP_FAILED) {
            kept.size = map;
            kept.bytes = (uint8_t *)map + sizeof(uint64_t);
        }
    }
    if (file) {
        fclose(file);
    }
    return kept;
}

/* The target gets memory of exactly the input's size, so that AddressSanitizer sees one byte too far. */
static void run(const keeper *kept, const uint8_t *bytes, size_t size)
{
    uint8_t *exact = malloc(size ? size : 1);
    if (!exact) {
        fprintf(stderr, "fuzz: out of memory\n");
        exit(2);
    }
    memcpy(exact, bytes, size);
    if (kept->bytes && size <= kept->capacity) {
        *kept->size = size;
        memcpy(kept->bytes, bytes, size);
    }
    LLVMFuzzerTestOneInput(exact, size);
    free(exact);
}

int main(int argc, char **argv)
{
    double seconds = argc > 1 ? strtod(argv[1], NULL) : 5;
    for (int i = 2; i < argc; i++) {
        struct stat info;
        if (stat(argv[i], &info) == 0 && S_ISDIR(info.st_mode)) {
            add_folder(argv[i]);
        } else {
            add_seed(argv[i]);
        }
    }
    if (n_seeds == 0) {
        seeds[n_seeds++] = (input){(uint8_t *)strdup(""), 0};
    }

    size_t largest = 0;
    for (size_t i = 0; i < n_seeds; i++) {
        largest = seeds[i].size > largest ? seeds[i].size : largest;
    }
    size_t capacity = largest + MAX_GROWN_BYTES;
    uint8_t *bytes = malloc(capacity);
    keeper kept = keeper_open(argv[0], capacity);
    if (!bytes) {
        fprintf(stderr, "fuzz: out of memory\n");
        return 2;
    }

    run(&kept, bytes, 0);
    for (size_t i = 0; i < n_seeds; i++) {
        run(&kept, seeds[i].bytes, seeds[i].size);
    }
    size_t runs = n_seeds + 1;
    for (double end = seconds_now() + seconds; seconds_now() < end; runs++) {
        const input *seed = &seeds[below(n_seeds)];
        memcpy(bytes, seed->bytes, seed->size);
        size_t size = seed->size;
        for (size_t changes = 1 + below(8); changes; changes--) {
            size = mutate(bytes, size, capacity);
        }
        run(&kept, bytes, size);
    }
    printf("fuzz: %zu seeds, %zu runs\n", n_seeds, runs);
    free(bytes);
    for (size_t i = 0; i < n_seeds; i++) {
        free(seeds[i].bytes);
    }
    if (kept.size) {
        char path[4096];
        munmap(kept.size, capacity + sizeof(uint64_t));
        snprintf(path, sizeof path, "%s.input", argv[0]);
        remove(path); /* nothing crashed: nothing to keep */
    }
    return 0;
}
