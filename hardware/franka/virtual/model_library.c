/* Dynamics and kinematics of a seven-joint arm, as libfranka's libfcimodels.h declares them.

   model_library.py puts the parameters before this text: PLACE and TURN of each joint in its
   parent, MASS, CENTRE and INERTIA (about the centre) of each link, FLANGE above joint 7.
   Matrices of the interface are column-major, rotations in here row-major. */

typedef struct { double r[9], p[3]; } Frame;
typedef struct { double mass, centre[3], inertia[9]; } Rigid;

static void cross(const double a[3], const double b[3], double out[3]) {
  double x = a[1] * b[2] - a[2] * b[1], y = a[2] * b[0] - a[0] * b[2];
  out[2] = a[0] * b[1] - a[1] * b[0];
  out[0] = x;
  out[1] = y;
}

/* out = m v, and out = m^T v */
static void turn(const double m[9], const double v[3], double out[3]) {
  double x = m[0] * v[0] + m[1] * v[1] + m[2] * v[2];
  double y = m[3] * v[0] + m[4] * v[1] + m[5] * v[2];
  out[2] = m[6] * v[0] + m[7] * v[1] + m[8] * v[2];
  out[0] = x;
  out[1] = y;
}

static void turn_back(const double m[9], const double v[3], double out[3]) {
  double x = m[0] * v[0] + m[3] * v[1] + m[6] * v[2];
  double y = m[1] * v[0] + m[4] * v[1] + m[7] * v[2];
  out[2] = m[2] * v[0] + m[5] * v[1] + m[8] * v[2];
  out[0] = x;
  out[1] = y;
}

static void multiply(const double a[9], const double b[9], double out[9]) {
  double c[9];
  for (int i = 0; i < 3; i++)
    for (int j = 0; j < 3; j++)
      c[3 * i + j] = a[3 * i] * b[j] + a[3 * i + 1] * b[3 + j] + a[3 * i + 2] * b[6 + j];
  for (int i = 0; i < 9; i++) out[i] = c[i];
}

/* Joint i's frame in its parent's, turned by the joint about z. */
static void joint(int i, double q, Frame *out) {
  double c = cos(q), s = sin(q), z[9] = {c, -s, 0, s, c, 0, 0, 0, 1};
  multiply(TURN[i], z, out->r);
  for (int k = 0; k < 3; k++) out->p[k] = PLACE[i][k];
}

/* Frames of the seven joints and of the flange in the base frame. */
static void chain(const double q[7], Frame f[8]) {
  Frame local;
  for (int i = 0; i < 7; i++) {
    joint(i, q[i], &local);
    if (i == 0) {
      f[0] = local;
      continue;
    }
    multiply(f[i - 1].r, local.r, f[i].r);
    turn(f[i - 1].r, local.p, f[i].p);
    for (int k = 0; k < 3; k++) f[i].p[k] += f[i - 1].p[k];
  }
  f[7] = f[6];
  for (int k = 0; k < 3; k++) f[7].p[k] += FLANGE * f[6].r[3 * k + 2];
}

static void end_effector(const Frame f[8], const double F_T_EE[16], Frame *out) {
  double r[9], p[3] = {F_T_EE[12], F_T_EE[13], F_T_EE[14]};
  for (int i = 0; i < 3; i++)
    for (int j = 0; j < 3; j++) r[3 * i + j] = F_T_EE[4 * j + i];
  multiply(f[7].r, r, out->r);
  turn(f[7].r, p, out->p);
  for (int k = 0; k < 3; k++) out->p[k] += f[7].p[k];
}

static void pose(const Frame *f, double out[16]) {
  for (int j = 0; j < 3; j++) {
    for (int i = 0; i < 3; i++) out[4 * j + i] = f->r[3 * i + j];
    out[4 * j + 3] = 0.0;
    out[12 + j] = f->p[j];
  }
  out[15] = 1.0;
}

/* Columns of the first n joints for the point of frame `at`; in that frame if `local`. */
static void jacobian(const Frame f[8], int n, const Frame *at, int local, double out[42]) {
  for (int i = 0; i < 42; i++) out[i] = 0.0;
  for (int j = 0; j < n; j++) {
    double axis[3] = {f[j].r[2], f[j].r[5], f[j].r[8]};
    double arm[3] = {at->p[0] - f[j].p[0], at->p[1] - f[j].p[1], at->p[2] - f[j].p[2]};
    double *linear = out + 6 * j, *angular = linear + 3;
    cross(axis, arm, linear);
    for (int k = 0; k < 3; k++) angular[k] = axis[k];
    if (local) {
      turn_back(at->r, linear, linear);
      turn_back(at->r, angular, angular);
    }
  }
}

/* Force and moment about the frame's origin that give `b` its acceleration. */
static void demand(const Rigid *b, const double w[3], const double dw[3], const double a[3],
                   double force[3], double moment[3]) {
  double acc[3], t[3], spin[3], change[3];
  cross(w, b->centre, t);
  cross(w, t, acc);
  cross(dw, b->centre, t);
  for (int k = 0; k < 3; k++) acc[k] = b->mass * (acc[k] + t[k] + a[k]);
  turn(b->inertia, w, t);
  cross(w, t, spin);
  turn(b->inertia, dw, change);
  cross(b->centre, acc, t);
  for (int k = 0; k < 3; k++) {
    force[k] += acc[k];
    moment[k] += t[k] + spin[k] + change[k];
  }
}

/* Torques for dq and ddq with the base accelerated by -gravity; `load` hangs on link 7. */
static void newton_euler(const double q[7], const double dq[7], const double ddq[7],
                         const double gravity[3], const Rigid *load, double tau[7]) {
  Frame f[7];
  double force[7][3], moment[7][3];
  double w[3] = {0, 0, 0}, dw[3] = {0, 0, 0};
  double a[3] = {-gravity[0], -gravity[1], -gravity[2]};
  for (int i = 0; i < 7; i++) {
    double t[3], u[3];
    joint(i, q[i], &f[i]);
    /* The origin of this frame as a point of the parent. */
    cross(w, f[i].p, t);
    cross(w, t, u);
    cross(dw, f[i].p, t);
    for (int k = 0; k < 3; k++) a[k] += t[k] + u[k];
    turn_back(f[i].r, a, a);
    turn_back(f[i].r, w, w);
    turn_back(f[i].r, dw, dw);
    dw[0] += w[1] * dq[i];
    dw[1] -= w[0] * dq[i];
    dw[2] += ddq[i];
    w[2] += dq[i];
    Rigid link = {MASS[i], {CENTRE[i][0], CENTRE[i][1], CENTRE[i][2]}, {0}};
    for (int k = 0; k < 9; k++) link.inertia[k] = INERTIA[i][k];
    for (int k = 0; k < 3; k++) force[i][k] = moment[i][k] = 0.0;
    demand(&link, w, dw, a, force[i], moment[i]);
    if (i == 6) demand(load, w, dw, a, force[i], moment[i]);
  }
  for (int i = 6; i >= 0; i--) {
    tau[i] = moment[i][2];
    if (i == 0) break;
    double t[3], u[3];
    turn(f[i].r, force[i], t);
    cross(f[i].p, t, u);
    for (int k = 0; k < 3; k++) force[i - 1][k] += t[k];
    turn(f[i].r, moment[i], t);
    for (int k = 0; k < 3; k++) moment[i - 1][k] += t[k] + u[k];
  }
}

/* End effector and load together; the centre comes in the flange frame. */
static Rigid carried(double mass, const double F_x_C[3], const double I[9]) {
  Rigid b = {mass, {F_x_C[0], F_x_C[1], F_x_C[2] + FLANGE}, {0}};
  for (int i = 0; i < 3; i++)
    for (int j = 0; j < 3; j++) b.inertia[3 * i + j] = I ? I[3 * j + i] : 0.0;
  return b;
}

static const double ZERO[7] = {0, 0, 0, 0, 0, 0, 0};

void M_NE(const double q[7], const double I_total[9], double m_total,
          const double F_x_Ctotal[3], double out[49]) {
  Rigid load = carried(m_total, F_x_Ctotal, I_total);
  for (int j = 0; j < 7; j++) {
    double unit[7] = {0, 0, 0, 0, 0, 0, 0};
    unit[j] = 1.0;
    newton_euler(q, ZERO, unit, ZERO, &load, out + 7 * j);
  }
}

void c_NE(const double q[7], const double dq[7], const double I_total[9], double m_total,
          const double F_x_Ctotal[3], double out[7]) {
  Rigid load = carried(m_total, F_x_Ctotal, I_total);
  newton_euler(q, dq, ZERO, ZERO, &load, out);
}

void g_NE(const double q[7], const double gravity_earth[3], double m_total,
          const double F_x_Ctotal[3], double out[7]) {
  Rigid load = carried(m_total, F_x_Ctotal, 0);
  newton_euler(q, ZERO, ZERO, gravity_earth, &load, out);
}

void O_T_J1(const double q[7], double out[16]) {
  Frame f[8];
  chain(q, f);
  pose(&f[0], out);
}

void O_J_J1(double out[42]) {
  Frame f[8];
  chain(ZERO, f);
  jacobian(f, 1, &f[0], 0, out);
}

void Ji_J_J1(double out[42]) {
  Frame f[8];
  chain(ZERO, f);
  jacobian(f, 1, &f[0], 1, out);
}

/* What joint k (of 2 to 7) and the flange (8) have: frame k - 1, and how many joints move it. */
#define FRAME(k, columns)                        \
  void O_T_J##k(const double q[7], double out[16]) {  \
    Frame f[8];                                  \
    chain(q, f);                                 \
    pose(&f[k - 1], out);                        \
  }                                              \
  void O_J_J##k(const double q[7], double out[42]) {  \
    Frame f[8];                                  \
    chain(q, f);                                 \
    jacobian(f, columns, &f[k - 1], 0, out);     \
  }                                              \
  void Ji_J_J##k(const double q[7], double out[42]) { \
    Frame f[8];                                  \
    chain(q, f);                                 \
    jacobian(f, columns, &f[k - 1], 1, out);     \
  }

FRAME(2, 2)
FRAME(3, 3)
FRAME(4, 4)
FRAME(5, 5)
FRAME(6, 6)
FRAME(7, 7)
FRAME(8, 7)

void O_T_J9(const double q[7], const double F_T_EE[16], double out[16]) {
  Frame f[8], ee;
  chain(q, f);
  end_effector(f, F_T_EE, &ee);
  pose(&ee, out);
}

void O_J_J9(const double q[7], const double F_T_EE[16], double out[42]) {
  Frame f[8], ee;
  chain(q, f);
  end_effector(f, F_T_EE, &ee);
  jacobian(f, 7, &ee, 0, out);
}

void Ji_J_J9(const double q[7], const double F_T_EE[16], double out[42]) {
  Frame f[8], ee;
  chain(q, f);
  end_effector(f, F_T_EE, &ee);
  jacobian(f, 7, &ee, 1, out);
}
