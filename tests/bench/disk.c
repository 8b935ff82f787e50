/* The disk's own speed at what a Maildir asks of it, and nothing else:
 *
 *     disk DIRECTORY THREADS FILES BYTES
 *
 * Each file is written into DIRECTORY/tmp, synced, renamed into DIRECTORY/new, and DIRECTORY/new is synced, one after
 * another in each thread. Prints the seconds that all FILES took.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static int tmp_directory, new_directory;
static long files, bytes, next_file;
static char *content;

static void must(int good, const char *what)
{
    if (!good) {
        perror(what);
        exit(1);
    }
}

static void *work(void *unused)
{
    char name[64];
    long number;

    (void)unused;
    while ((number = __atomic_fetch_add(&next_file, 1, __ATOMIC_RELAXED)) < files) {
        snprintf(name, sizeof name, "%ld.disk", number);
        int file = openat(tmp_directory, name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
        must(file >= 0, "open");
        for (long done = 0; done < bytes;) {
            ssize_t written = write(file, content + done, bytes - done);
            must(written > 0, "write");
            done += written;
        }
        must(fsync(file) == 0, "fsync");
        must(close(file) == 0, "close");
        must(renameat(tmp_directory, name, new_directory, name) == 0, "rename");
        must(fsync(new_directory) == 0, "fsync of the directory");
    }
    return NULL;
}

int main(int count, char **arguments)
{
    if (count != 5) {
        fprintf(stderr, "usage: disk DIRECTORY THREADS FILES BYTES\n");
        return 64;
    }
    long threads = atol(arguments[2]);
    files = atol(arguments[3]);
    bytes = atol(arguments[4]);
    pthread_t ids[64];
    must(threads >= 1 && threads <= 64, "threads");
    must(chdir(arguments[1]) == 0, "chdir");
    tmp_directory = open("tmp", O_RDONLY | O_DIRECTORY);
    new_directory = open("new", O_RDONLY | O_DIRECTORY);
    must(tmp_directory >= 0 && new_directory >= 0, "open tmp and new");
    content = malloc(bytes + 1);
    must(content != NULL, "malloc");
    memset(content, 'x', bytes);

    struct timespec began, ended;
    clock_gettime(CLOCK_MONOTONIC, &began);
    for (long i = 0; i < threads; i++)
        must(pthread_create(&ids[i], NULL, work, NULL) == 0, "pthread_create");
    for (long i = 0; i < threads; i++)
        pthread_join(ids[i], NULL);
    clock_gettime(CLOCK_MONOTONIC, &ended);
    printf("%.6f\n", (ended.tv_sec - began.tv_sec) + (ended.tv_nsec - began.tv_nsec) / 1e9);
    return 0;
}
