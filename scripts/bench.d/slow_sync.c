/*
 * A disk that takes its time: preloaded, it makes each fsync and fdatasync return NED_SYNC_US
 * later, as behind a controller without a cache, and adds a byte to NED_SYNC_COUNT. Nothing else of
 * the program becomes slower, which no tracer can promise.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

static int late(const char *name, int fd)
{
    int (*real)(int) = (int (*)(int))dlsym(RTLD_NEXT, name);
    const char *count = getenv("NED_SYNC_COUNT"), *us = getenv("NED_SYNC_US");
    long more = us ? atol(us) : 0;
    struct timespec wait = { more / 1000000, more % 1000000 * 1000 };
    int result = real(fd), kept = errno, file;

    /* The processes of a server count together: an appended byte is added whole. */
    if (count && (file = open(count, O_WRONLY | O_APPEND | O_CLOEXEC)) >= 0) {
        if (write(file, ".", 1) != 1)
            _exit(99);
        close(file);
    }
    while (more > 0 && nanosleep(&wait, &wait) != 0 && errno == EINTR)
        ;
    errno = kept;
    return result;
}

int fsync(int fd)
{
    return late("fsync", fd);
}

int fdatasync(int fd)
{
    return late("fdatasync", fd);
}
