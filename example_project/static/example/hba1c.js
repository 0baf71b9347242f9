// Draws the HbA1c results that the page carries as JSON. Without this script the table
// beside the chart says the same, so the chart stays hidden until it can be drawn.
(() => {
  "use strict";

  const DAY = 86_400_000;
  const data = JSON.parse(document.getElementById("hba1c-data").textContent);
  const canvas = document.getElementById("hba1c-chart");
  if (!canvas || !window.Chart || data.points.length === 0) {
    return;
  }
  canvas.closest("figure").hidden = false;

  const monthYear = new Intl.DateTimeFormat(document.documentElement.lang, {
    month: "short", year: "numeric", timeZone: "UTC",
  });

  // Months between two lines of the grid: the least of these with room for its labels.
  const STEPS = [1, 2, 3, 6, 12, 24, 60, 120, 240];

  function dateTicks(axis) {
    const room = Math.max(2, Math.floor(axis.width / 80));
    const months = (axis.max - axis.min) / (30.44 * DAY);
    const step = STEPS.find((size) => months / size <= room) || 480;
    const start = new Date(axis.min);
    const index = start.getUTCFullYear() * 12 + start.getUTCMonth();
    const ticks = [];
    for (let month = Math.ceil(index / step) * step; ; month += step) {
      const value = Date.UTC(Math.floor(month / 12), month % 12, 1);
      if (value > axis.max) {
        break;
      }
      if (value >= axis.min) {
        const label = step >= 12
          ? String(Math.floor(month / 12)) : monthYear.format(value);
        ticks.push({ value, label });
      }
    }
    axis.ticks = ticks;
  }

  function colours() {
    const style = getComputedStyle(document.documentElement);
    const colour = (name) => style.getPropertyValue(name).trim();
    return {
      accent: colour("--accent"), card: colour("--card"), ink: colour("--ink"),
      quiet: colour("--quiet"), line: colour("--line"), band: colour("--band"),
    };
  }

  // The laboratory's reference range, drawn behind the results where one is known.
  const band = {
    id: "band",
    beforeDatasetsDraw(chart) {
      if (data.low === null && data.high === null) {
        return;
      }
      const { chartArea: area, scales: { y }, ctx } = chart;
      const clamp = (pixel) => Math.min(area.bottom, Math.max(area.top, pixel));
      const top = data.high === null ? area.top : clamp(y.getPixelForValue(data.high));
      const bottom = data.low === null
        ? area.bottom : clamp(y.getPixelForValue(data.low));
      ctx.save();
      ctx.fillStyle = colours().band;
      ctx.fillRect(area.left, top, area.width, bottom - top);
      ctx.restore();
    },
  };

  function range() {
    const times = data.points.map((point) => point.x);
    const values = data.points.map((point) => point.y);
    const first = Math.min(...times);
    const last = Math.max(...times);
    const margin = Math.max(30 * DAY, (last - first) * 0.04);
    const low = Math.min(...values);
    const high = Math.max(...values);
    const space = Math.max((high - low) * 0.15, high * 0.04, 0.1);
    return {
      x: { min: first - margin, max: last + margin },
      // The range of the laboratory is shown if it is near; results come first.
      y: {
        suggestedMin: data.high !== null && data.high < low
          && low - data.high < 2 * (high - low) ? data.high - space : low - space,
        suggestedMax: data.low !== null && data.low > high
          && data.low - high < 2 * (high - low) ? data.low + space : high + space,
      },
    };
  }

  function draw() {
    const colour = colours();
    const limits = range();
    const font = { family: getComputedStyle(document.body).fontFamily, size: 13 };
    return new Chart(canvas, {
      type: "line",
      data: {
        datasets: [{
          data: data.points,
          borderColor: colour.accent,
          borderWidth: 2.5,
          pointBackgroundColor: colour.card,
          pointBorderColor: colour.accent,
          pointBorderWidth: 2.5,
          pointRadius: data.points.length > 60 ? 2 : 4.5,
          pointHoverRadius: 7,
          pointHitRadius: 16,
          tension: 0,
        }],
      },
      options: {
        maintainAspectRatio: false,
        animation: matchMedia("(prefers-reduced-motion: reduce)").matches
          ? false : { duration: 400 },
        parsing: false,
        interaction: { mode: "nearest", axis: "x", intersect: false },
        font,
        scales: {
          x: {
            type: "linear",
            ...limits.x,
            afterBuildTicks: dateTicks,
            grid: { color: colour.line },
            border: { color: colour.line },
            ticks: {
              color: colour.quiet, font, maxRotation: 0, autoSkip: false,
              callback: (value, index, ticks) => ticks[index].label,
            },
          },
          y: {
            ...limits.y,
            grid: { color: colour.line },
            border: { display: false },
            title: { display: Boolean(data.unit), text: data.unit, color: colour.quiet, font },
            ticks: { color: colour.quiet, font, maxTicksLimit: 8 },
          },
        },
        plugins: {
          legend: { display: false },
          tooltip: {
            displayColors: false,
            backgroundColor: colour.ink,
            titleColor: colour.card,
            bodyColor: colour.card,
            titleFont: { ...font, weight: "normal" },
            bodyFont: { ...font, size: 15, weight: "bold" },
            padding: 10,
            callbacks: {
              title: (items) => items[0].raw.date,
              label: (item) => item.raw.text,
            },
          },
        },
      },
      plugins: [band],
    });
  }

  let chart = draw();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
    chart.destroy();
    chart = draw();
  });
})();
