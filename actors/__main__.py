"""`python -m actors`: what has to be settled before anything of `actors/process.py` is imported."""

from protocol.process import ONE_THREAD, fix_hash_seed, seek_user_modules_last

if __name__ == "__main__":
    seek_user_modules_last()  # before any module that a file of the user's could be taken for
    fix_hash_seed()
    import os
    import signal

    os.environ.update(ONE_THREAD)  # before NumPy is imported
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)  # at once, and quietly: there is no environment yet
    from actors.process import main

    main()
