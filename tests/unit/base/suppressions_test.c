/* tests/unit/base/suppressions_test.c: what cmake/tsan.supp leaves to be seen. Built with ThreadSanitizer alone, which must
 * report this race: both its sides are inside of a function of the C library's, as many of ours would be. */
#include <pthread.h>
#include <string.h>

static char g_shared[64];

static void *write_it(void *text)
{
    memcpy(g_shared, text, strlen(text));
    return NULL;
}

int main(void)
{
    pthread_t threads[2];
    static char texts[2][64] = {"one of them", "and the other"};
    for (int i = 0; i < 2; i++)
        if (pthread_create(&threads[i], NULL, write_it, texts[i]) != 0)
            return 1;
    for (int i = 0; i < 2; i++)
        pthread_join(threads[i], NULL);
    return 0;
}
