from django.contrib import admin

from example_project.shop.models import Basket, Invoice, Report, Run, StockPrice


@admin.register(Run)
class RunAdmin(admin.ModelAdmin):
    list_display = ("entry", "scheduled_fire_time", "fire_time", "outcome", "missed_count", "started_at")
    list_filter = ("entry", "outcome")


@admin.register(Report)
class ReportAdmin(admin.ModelAdmin):
    list_display = ("until", "runs")


@admin.register(StockPrice)
class StockPriceAdmin(admin.ModelAdmin):
    list_display = ("symbol", "cents", "fetched_at")


@admin.register(Invoice)
class InvoiceAdmin(admin.ModelAdmin):
    list_display = ("number", "reminders", "closed_at")


admin.site.register(Basket)
