"""Messages to the user."""

from snakemake_logger_plugin_mlflow.messages import remove_passwords, root_cause


def test_messages_are_short_and_contain_no_password():
    assert remove_passwords("http://me:secret@host/x") == "http://host/x"
    try:
        try:
            raise OSError("http://me:secret@host is down\nmuch more")
        except OSError as error:
            raise RuntimeError("long story") from error
    except RuntimeError as error:
        assert root_cause(error) == "http://host is down"
    error = OSError("too many 503 error responses")
    assert root_cause(error) == "the server responds with error 503; its database may be down"
