/*
 * A disk that turns read-only and back, as ext4 does after an error: preloaded, it refuses to write
 * below NED_READ_ONLY_BELOW while the file NED_READ_ONLY_WHEN exists. A real file system cannot be
 * made read-only while somebody has a file of it open for writing.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int refused(const char *path)
{
    const char *below = getenv("NED_READ_ONLY_BELOW"), *when = getenv("NED_READ_ONLY_WHEN");

    if (!below || !when || strncmp(path, below, strlen(below)) != 0 || access(when, F_OK) != 0)
        return 0;
    errno = EROFS;
    return 1;
}

static int refused_fd(int fd)
{
    char link[64], path[PATH_MAX];
    ssize_t size;

    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    size = readlink(link, path, sizeof path - 1);
    if (size < 0)
        return 0;
    path[size] = 0;
    return refused(path);
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

#define OPEN(name)                                                       \
    int name(const char *path, int flags, ...)                           \
    {                                                                    \
        va_list rest;                                                    \
        mode_t mode;                                                     \
                                                                         \
        va_start(rest, flags);                                           \
        mode = flags & O_CREAT ? va_arg(rest, mode_t) : 0;               \
        va_end(rest);                                                    \
        if ((flags & O_ACCMODE) != O_RDONLY && refused(path))            \
            return -1;                                                   \
        return REAL(name)(path, flags, mode);                            \
    }
OPEN(open)
OPEN(open64)

#define ON_FD(result, name, args, call)                                  \
    result name args                                                     \
    {                                                                    \
        return refused_fd(fd) ? -1 : REAL(name) call;                    \
    }
ON_FD(ssize_t, write, (int fd, const void *data, size_t size), (fd, data, size))
ON_FD(ssize_t, pwrite, (int fd, const void *data, size_t size, off_t at), (fd, data, size, at))
ON_FD(ssize_t, pwrite64, (int fd, const void *data, size_t size, off64_t at), (fd, data, size, at))
ON_FD(int, ftruncate, (int fd, off_t size), (fd, size))
ON_FD(int, ftruncate64, (int fd, off64_t size), (fd, size))

int unlink(const char *path)
{
    return refused(path) ? -1 : REAL(unlink)(path);
}
