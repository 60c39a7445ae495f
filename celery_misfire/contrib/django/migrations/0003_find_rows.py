from django.db import migrations


def find_rows(apps, schema_editor):
    """Give each record the row of its name, if there is one."""
    alias = schema_editor.connection.alias
    tasks = apps.get_model("django_celery_beat", "PeriodicTask").objects.using(alias)
    missed = apps.get_model("celery_misfire", "MissedFire").objects.using(alias)
    keys = dict(tasks.values_list("name", "pk"))
    for name in set(missed.order_by().values_list("entry", flat=True)) & keys.keys():
        missed.filter(entry=name).update(periodic_task_id=keys[name])


class Migration(migrations.Migration):
    """Apart from the columns: PostgreSQL alters no table that has been written to in the same transaction."""

    dependencies = [("celery_misfire", "0002_misses_of_rows")]

    operations = [migrations.RunPython(find_rows, migrations.RunPython.noop, elidable=True)]
