/* A libc that lies: fsync and fdatasync of what FAULTS_SKIP names do nothing and report success, and neither does the
 * hint that sends its pages on their way: on a quick disk they would be there in time, and nothing would be seen missing.
 *
 * FAULTS_SKIP is a list by commas: "spool" (the spool's database and its log), "file" (any other ordinary file),
 * "folder" (directories). Loaded by LD_PRELOAD, so that the program under test is the one that people run.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static const char *kind_of(int handle)
{
    struct stat status;
    char link[64], path[4096];
    ssize_t length;

    if (fstat(handle, &status) != 0)
        return "";
    if (S_ISDIR(status.st_mode))
        return "folder";
    if (!S_ISREG(status.st_mode))
        return "";
    snprintf(link, sizeof link, "/proc/self/fd/%d", handle);
    length = readlink(link, path, sizeof path - 1);
    if (length < 0)
        return "";
    path[length] = '\0';
    return strstr(path, "/spool.sqlite") ? "spool" : "file";
}

static int skipped(int handle)
{
    const char *wanted = getenv("FAULTS_SKIP"), *kind = kind_of(handle);

    return wanted && *kind && strstr(wanted, kind);
}

static int really(const char *name, int handle)
{
    int (*call)(int) = (int (*)(int))dlsym(RTLD_NEXT, name);

    return skipped(handle) ? 0 : call(handle);
}

int fsync(int handle)
{
    return really("fsync", handle);
}

int fdatasync(int handle)
{
    return really("fdatasync", handle);
}

int posix_fadvise(int handle, off_t offset, off_t length, int advice)
{
    int (*call)(int, off_t, off_t, int) = (int (*)(int, off_t, off_t, int))dlsym(RTLD_NEXT, "posix_fadvise");

    return skipped(handle) ? 0 : call(handle, offset, length, advice);
}

int posix_fadvise64(int handle, off64_t offset, off64_t length, int advice)
{
    int (*call)(int, off64_t, off64_t, int) =
        (int (*)(int, off64_t, off64_t, int))dlsym(RTLD_NEXT, "posix_fadvise64");

    return skipped(handle) ? 0 : call(handle, offset, length, advice);
}
