"""Amazon EC2, through boto3. Places are availability zones of the account's enabled regions."""

from tasks.clouds.aws.clients import AwsOptions
from tasks.clouds.aws.cloud import AwsCloud

__all__ = ["AwsCloud", "AwsOptions"]
